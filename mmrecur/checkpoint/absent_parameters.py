"""Reasons why a backbone has no place for a parameter of a checkpoint."""

from __future__ import annotations

import re

from torch import nn

from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2

_NOT_BUILT = 'the stage is not built because it comes after the last of out_indices'
_LAST_UPDATE = 'belongs to the last update of the state, which nothing reads'


def why_absent(name: str, backbone: nn.Module) -> str | None:
    """Explain why a backbone lacks a parameter.

    Args:
        name (str): Name in this package without the backbone's prefix; ``fc`` or ``head.fc`` for a
            classifier.
        backbone (nn.Module): The backbone.

    Returns:
        str, optional: The reason; None if the parameter should be there.
    """
    if name.startswith(('head.fc.', 'fc.')):
        return 'the model has no such classifier'
    if isinstance(backbone, RLAMobileNetV2) and (reason := _why_absent_from_mobilenet(name, backbone)):
        return reason
    if name.startswith('final_norm.') and getattr(backbone, 'final_norm', True) is None:
        return _NOT_BUILT
    with_hidden = getattr(backbone, 'with_hidden', False)
    if name.startswith('hidden_norm.') and not with_hidden:
        return 'the model does not return its state (with_hidden=False)'
    if hasattr(backbone, 'basis_groups') and re.match(r'(transition\d|norm|conv2|bn2)\.', name):
        return 'lies between or after stages that are not built because of out_indices'
    if match := re.match(r'layer(\d+)\.', name):
        stage = int(match[1])
        if stage > backbone.num_stages:
            return _NOT_BUILT
        if getattr(backbone, 'rla_channels', None) == 0 and '.rla.' in name:
            return 'the model has no recurrent path (rla_channels=0)'
        own = re.search(r'\.rla\.(norms|steps)\.', name)
        if stage == backbone.num_stages and own and not with_hidden:
            return _LAST_UPDATE
    return None


def _why_absent_from_mobilenet(name: str, backbone: RLAMobileNetV2) -> str | None:
    if backbone.ends:
        return None
    if re.match(r'(conv2|bn2|conv2_hidden|hidden_norm)\.', name):
        return _NOT_BUILT
    if name.startswith(f'layer{backbone.num_stages}.rla.'):
        return _LAST_UPDATE
    if name.startswith('recurrent_convs.') and backbone.share == 'stage':
        return 'belongs to stages that are not built or whose updates nothing reads'
    return None
