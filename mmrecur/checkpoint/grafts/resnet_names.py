"""Common names for the parameters of plain ResNets from different libraries.

The common names are torchvision's (``layer1.0.conv1.weight``, ``fc.weight``). The three convolutions of a
ResNet-D stem, which torchvision lacks, have MMDetection's names (``stem.0`` to ``stem.7``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmrecur.checkpoint.unwrap import backbone_prefix
from mmrecur.errors import TransferError

_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # mmdet names a norm by its type
        (r'(?<![a-z])(?:gn|ln|in|syncbn|norm)(\d)\.', r'bn\1.'),
        # mmpretrain's ResNet-D stem and its classifiers
        (r'^stem\.(\d)\.conv\.', lambda m: f'stem.{3 * int(m[1])}.'),
        (r'^stem\.(\d)\.bn\.', lambda m: f'stem.{3 * int(m[1]) + 1}.'),
        (r'^head\.(?:fc|layers\.\d+)\.', 'fc.'),
        # timm's ResNet-D stem: conv1 is a sequence whose last norm is bn1
        (r'^conv1\.(\d)\.', r'stem.\1.'),
        # squeeze-and-excitation, ECA and CBAM of timm and mmpretrain
        (r'\.se_layer\.conv([12])\.conv\.', r'.attention.fc\1.'),
        (r'\.se\.fc([12])\.', r'.attention.fc\1.'),
        (r'\.(?:se|eca)\.conv\.', '.attention.conv.'),
        (r'\.se\.channel\.', '.attention.'),
        (r'\.se\.spatial\.conv\.conv\.', '.attention.spatial.'),
        (r'\.se\.spatial\.conv\.bn\.', '.attention.spatial_norm.'),
        # plugins of mmdet: global context, empirical attention, non-local
        (r'(layer\d\.\d+)\.(?:context|gen_attention|nonlocal)_block\w*\.', r'\1.attention.'),
    ]
)


def plain_names(source: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the common names of a plain ResNet's parameters to the keys of a checkpoint.

    Args:
        source (Mapping[str, Tensor]): Tensors by name, of a ResNet, ResNeXt, SE-ResNet, ECA-ResNet or
            ResNet-D, or of a model with one as backbone, in the layout of torchvision, timm, mmpretrain
            or mmdet.

    Returns:
        dict[str, str]: Key in the checkpoint by common name, for the backbone and the classifier ``fc``.
        Other parts, such as the neck and heads of a detector, are left out.

    Raises:
        TransferError: If two keys have the same common name.
    """
    prefix = backbone_prefix(source)
    timm_stem = any(re.match(r'conv1\.\d\.', key[len(prefix) :]) for key in source)
    names: dict[str, str] = {}
    for key in source:
        inside = key.startswith(prefix)
        name = key[len(prefix) :] if inside else key
        if not inside and not re.match(r'head\.(fc|layers\.\d+)\.', key):
            continue
        if timm_stem:
            name = re.sub(r'^bn1\.', 'stem.7.', name)
        for pattern, replacement in _RULES:
            name = pattern.sub(replacement, name)
        if name in names:
            raise TransferError(f'{names[name]} and {key} are both {name} of a plain network')
        names[name] = key
    return names
