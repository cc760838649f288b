"""How plain MobileNetV2s become RLA-MobileNetV2s."""

from __future__ import annotations

import re

from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.layouts_mobilenet import mobilenet_names, why_absent_mobilenet

#: In a block the last convolution, in the network the one to 1280 channels.
_ADDS_STATE = re.compile(r'\.conv3_hidden\.|^conv2_hidden\.')
_RECURRENT = re.compile(r'\w+_hidden\.|hidden_norm\.|recurrent_convs\.|rla\.')


@register_graft('RLAMobileNetV2')
def _graft_rla_mobilenet(transfer: GraftTransfer) -> None:
    """Plain MobileNetV2s: what is new has no say at first.

    The convolutions that add the state's part to a sum start at zero; attentions see
    :meth:`GraftTransfer.start_attention`.
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
        is_head = name.startswith('fc.')  # which comes after the backbone
        if key not in used and not is_head and (why := why_absent_mobilenet(name, transfer.backbone)):
            transfer.drop(key, why)
