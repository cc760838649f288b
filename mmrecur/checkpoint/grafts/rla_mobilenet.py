"""Plain MobileNetV2s grafted into RLA-MobileNetV2s."""

from __future__ import annotations

import re

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.grafts.mobilenet_names import mobilenet_names
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2

#: Layers that add the state to a sum: the projection of a block, the convolution to 1280 channels.
_ADDS_STATE = re.compile(r'\.conv3_hidden\.|^conv2_hidden\.')
_RECURRENT = re.compile(r'\w+_hidden\.|hidden_norm\.|recurrent_convs\.|rla\.')


@register_graft(RLAMobileNetV2)
def graft_rla_mobilenet(transfer: GraftTransfer) -> None:
    """Fill an RLA-MobileNetV2 so that it computes the same as the plain MobileNetV2.

    The convolutions that add the recurrent state to a sum start at zero. For attention layers see
    :meth:`GraftTransfer.start_attention`.

    Args:
        transfer (GraftTransfer): The transfer to fill.
    """
    transfer.plain = mobilenet_names(transfer.source)
    names = transfer.backbone_keys()
    was_recurrent = any(map(_RECURRENT.search, transfer.plain))
    of_each_stage = 'recurrent_convs.1.weight' in transfer.plain
    only_conv = None if of_each_stage else transfer.plain.get('recurrent_convs.0.weight')
    for name in names:
        target = transfer.prefix + name
        if transfer.start_attention(name):
            continue
        if name.startswith('recurrent_convs.') and only_conv and name not in transfer.plain:
            how = 'the source has one W_r for all stages'
            transfer.transform(target, [only_conv], transfer.source[only_conv], how)
        elif name in transfer.plain or (was_recurrent and _RECURRENT.search(name)):
            transfer.take(name)
        elif _ADDS_STATE.search(name):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif _RECURRENT.search(name):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        else:
            transfer.take(name)
    used = transfer.used_sources()
    for name, key in transfer.plain.items():
        # copy_other_parts() looks at the classifier later
        is_head = name.startswith('fc.')
        if key not in used and not is_head and (why := why_absent(name, transfer.backbone)):
            transfer.drop(key, why)
