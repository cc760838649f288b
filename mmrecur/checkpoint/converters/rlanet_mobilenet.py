"""Checkpoints of the RLA authors' MobileNetV2."""

from __future__ import annotations

import re

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.transfer import Transfer

_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r'^bn2\.', 'hidden_norm.'),
        (r'^conv([12])\.0\.', r'conv\1.'),
        (r'^conv([12])\.1\.', r'bn\1.'),
        (r'^classifier\.1\.', 'head.fc.'),
        (r'^conv_outs\.(\d+)\.', lambda m: f'layer{int(m[1]) + 1}.rla.conv_out.'),
        (r'^stage_bns\.(\d+)\.', lambda m: f'layer{int(m[1]) + 1}.rla.norms.'),
        (r'^recurrent_dsconvs\.', 'recurrent_convs.'),
        # in a block, conv1x1 is the expansion; conv is (depthwise, norm, relu), projection, norm, ECA
        (r'^stages\.(\d+)\.', lambda m: f'layer{int(m[1]) + 1}.'),
        (r'\.conv1x1\.0\.', '.conv1.'),
        (r'\.conv1x1\.1\.', '.bn1.'),
        (r'\.conv\.0\.0\.', '.conv2.'),
        (r'\.conv\.0\.1\.', '.bn2.'),
        (r'(layer\d+\.\d+)\.conv\.1\.', r'\1.conv3.'),
        (r'(layer\d+\.\d+)\.conv\.2\.', r'\1.bn3.'),
        (r'(layer\d+\.\d+)\.conv\.3\.conv\.', r'\1.attention.conv.'),
    ]
)
#: Layers over ``cat(x, h)``, which are two layers here, and the axis of the concatenated channels.
_JOINED = ((re.compile(r'layer\d+\.\d+\.(?:conv2|bn2)\.'), 0), (re.compile(r'(?:.+\.)?conv[23]\.'), 1))


def _our_name(key: str) -> str:
    """Translate a key of the authors' checkpoints into our name, both without the backbone's prefix."""
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key, count=1)
    return key


def convert_rlanet_mobilenet(transfer: Transfer) -> None:
    """Fill an RLAMobileNetV2 from the authors' classifier or from a detector with their backbone.

    Their checkpoint holds one recurrent convolution W_r under five names. It fills every W_r of the model.
    A model with ``share='network'`` also shares it in training, like the authors' network.

    Args:
        transfer (Transfer): The transfer to fill.
    """
    source, prefix = transfer.source, transfer.prefix
    from_detector = any(key.startswith('backbone.') for key in source)
    for key in source:
        if from_detector and not key.startswith('backbone.'):
            transfer.drop(key, 'not part of the backbone')
            continue
        name = _our_name(key.removeprefix('backbone.'))
        target = name if name.startswith('head.fc.') else prefix + name
        if target in transfer.target:
            _take(transfer, target, key)
        elif name.startswith('recurrent_convs.') and _is_same_as_first(transfer, key):
            transfer.drop(key, 'the same weights as the first: the model has one for all stages')
        elif why := why_absent(name.removeprefix('head.'), transfer.backbone):
            transfer.drop(key, why)
    transfer.leave_counters_and_other_parts()


def _take(transfer: Transfer, target: str, key: str) -> None:
    """Copy a tensor; split it in two if its layer reads ``cat(x, h)``."""
    module, leaf = target.rsplit('.', 1)
    hidden, name = f'{module}_hidden.{leaf}', target.removeprefix(transfer.prefix)
    axis = next((axis for pattern, axis in _JOINED if pattern.match(name)), None)
    if axis is None or hidden not in transfer.target:
        transfer.copy(target, key)
        return
    tensor = transfer.source[key]
    if tensor.dim() == 0:
        transfer.transform(target, [key], tensor, 'counts for x and for h')
        transfer.transform(hidden, [key], tensor, 'counts for x and for h')
        return
    channels = transfer.target[target].size(axis)
    state = transfer.target[hidden].size(axis)
    sizes = [channels, tensor.size(axis) - channels]
    if sizes[1] != state:  # copy() reports the wrong shape
        transfer.copy(target, key)
        return
    for name, part, what in zip((target, hidden), tensor.split(sizes, axis), 'xh', strict=True):
        transfer.transform(name, [key], part, f'channels of {what}, {sizes[0]} of x and {sizes[1]} of h')


def _is_same_as_first(transfer: Transfer, key: str) -> bool:
    first = re.sub(r'\d+(?=\.weight$)', '0', key)
    return first in transfer.source and torch.equal(transfer.source[first], transfer.source[key])
