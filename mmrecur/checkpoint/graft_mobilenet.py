"""How plain MobileNetV2s become RLA-MobileNetV2s."""

from __future__ import annotations

import re

from .graft import GraftTransfer, register_graft
from .layouts_mobilenet import mobilenet_names, why_absent_mobilenet

_ATTENTION = re.compile(r'\.attention\.')
_LAST_OF_ATTENTION = re.compile(r'\.attention\.(?:conv|fc2)\.weight$')
#: In a block the last convolution, in the network the one to 1280 channels.
_ADDS_STATE = re.compile(r'\.conv3_hidden\.|^conv2_hidden\.')
_RECURRENT = re.compile(r'\w+_hidden\.|hidden_norm\.|recurrent_convs\.|rla\.')


@register_graft('RLAMobileNetV2')
def _graft_rla_mobilenet(transfer: GraftTransfer) -> None:
    """Plain MobileNetV2s: what is new has no say at first.

    The convolutions that add the state's part to a sum start at zero. A new attention gates by one
    half at first, and the norm before it is doubled.
    """
    transfer.plain = mobilenet_names(transfer.source)
    names = transfer.backbone_keys()
    had_attention = any(map(_ATTENTION.search, transfer.plain))
    adds_attention = not had_attention and any(map(_ATTENTION.search, names))
    was_recurrent = any(map(_RECURRENT.search, transfer.plain))
    of_each_stage = 'recurrent_convs.1.weight' in transfer.plain
    only_conv = None if of_each_stage else transfer.plain.get('recurrent_convs.0.weight')
    for name in names:
        target = transfer.prefix + name
        if name in transfer.plain and adds_attention and re.search(r'\.bn3\.(weight|bias)$', name):
            key = transfer.plain[name]
            doubled = 2 * transfer.source[key]
            transfer.transform(target, [key], doubled, 'doubled: the new attention gates by 1/2 at first')
        elif name.startswith('recurrent_convs.') and only_conv and name not in transfer.plain:
            how = 'the source has one W_r for all stages'
            transfer.transform(target, [only_conv], transfer.source[only_conv], how)
        elif name in transfer.plain or (was_recurrent and _RECURRENT.search(name)):
            transfer.take(name)
        elif _ADDS_STATE.search(name):
            transfer.zero(target, 'zeros: the state is not read at first')
        elif _RECURRENT.search(name):
            transfer.leave(target, 'the recurrent path learns from its own initialisation')
        elif adds_attention and _LAST_OF_ATTENTION.search(name):
            transfer.zero(target, 'zeros: the gate is 1/2 at first')
        elif adds_attention and _ATTENTION.search(name):
            transfer.leave(target, 'new, and without a say at first')
        else:
            transfer.take(name)
    used = transfer.used_sources()
    for name, key in transfer.plain.items():
        is_head = name.startswith('fc.')  # which comes after the backbone
        if key not in used and not is_head and (why := why_absent_mobilenet(name, transfer.backbone)):
            transfer.drop(key, why)
