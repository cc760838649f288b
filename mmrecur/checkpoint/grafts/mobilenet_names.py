"""Common names for the parameters of plain MobileNetV2s from different libraries.

The common names are those of :class:`RLAMobileNetV2`. In a block, ``conv1`` is the expansion, ``conv2`` the
depthwise convolution and ``conv3`` the projection, as in ``layer2.0.conv1.weight``. Outside the blocks,
``conv1`` and ``conv2`` are the first and last convolution of the network, and ``fc`` is the classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from mmrecur.checkpoint.unwrap import backbone_prefix
from mmrecur.errors import TransferError
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2

#: Blocks in each group, and the index of its first block in a network that numbers its blocks from 1.
_BLOCKS = [num_blocks for _, _, num_blocks, _ in RLAMobileNetV2.arch_settings]
_STARTS = [1 + before for before in accumulate([0, *_BLOCKS[:-1]])]

_CLASSIFIER = r'(?:classifier\.1|classifier|head\.fc|head\.layers\.\d+|fc)\.'
#: MMCV's ConvModule names a norm by its type.
_NORM = r'(?:bn|gn|ln|in)'
_ENDS: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r'^' + _CLASSIFIER, 'fc.'),
        # torchvision
        (r'^features\.0\.0\.', 'conv1.'),
        (r'^features\.0\.1\.', 'bn1.'),
        (r'^features\.18\.0\.', 'conv2.'),
        (r'^features\.18\.1\.', 'bn2.'),
        # timm; its norms have the common names already
        (r'^conv_stem\.', 'conv1.'),
        (r'^conv_head\.', 'conv2.'),
        # mmpretrain and mmdet
        (r'^conv([12])\.conv\.', r'conv\1.'),
        (rf'^conv([12])\.{_NORM}\.', r'bn\1.'),
    ]
)
_TIMM = {'conv_pw': 'conv1', 'conv_dw': 'conv2', 'conv_pwl': 'conv3'}
#: timm's first block has no expansion, so its projection is the second layer.
_TIMM_FIRST = {'conv_dw': 'conv2', 'bn1': 'bn2', 'conv_pw': 'conv3', 'bn2': 'bn3'}
_MMDET = {'expand_conv': '1', 'depthwise_conv': '2', 'linear_conv': '3'}


def _sequential(index: str, leaf: str, first: bool) -> str:
    """Return the layer at a place of torchvision's block.

    The block is a sequence of triples ``(conv, norm, relu)``, then a convolution, then a norm.
    """
    position = int(index) + (2 if first else 1)
    if leaf in ('0', '1'):  # inside a triple
        return ('conv', 'bn')[int(leaf)] + str(position)
    # the last convolution and, one place further, its norm
    return 'conv3' if position == 3 else 'bn3'


def _in_block(group: int, block: int, rest: str) -> str:
    """Return the common name of a parameter in a block; groups and blocks are numbered from 0."""
    first = group == 0
    if match := re.fullmatch(r'conv\.(\d)\.(?:([01])\.)?(\w+)', rest):  # torchvision
        rest = f'{_sequential(match[1], match[2], first)}.{match[3]}'
    elif match := re.fullmatch(rf'conv\.(\d)\.(conv|{_NORM})\.(\w+)', rest):  # mmpretrain
        kind = 'conv' if match[2] == 'conv' else 'bn'
        rest = f'{kind}{int(match[1]) + (2 if first else 1)}.{match[3]}'
    elif match := re.fullmatch(rf'(\w+_conv)\.(conv|{_NORM})\.(\w+)', rest):  # mmdet
        kind = 'conv' if match[2] == 'conv' else 'bn'
        rest = f'{kind}{_MMDET.get(match[1], match[1])}.{match[3]}'
    return f'layer{group + 1}.{block}.{rest}'


def _common_name(name: str) -> str:
    for pattern, replacement in _ENDS:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    if match := re.fullmatch(r'features\.(\d+)\.(.+)', name):  # torchvision numbers blocks across groups
        group = max(i for i, start in enumerate(_STARTS) if start <= int(match[1]))
        return _in_block(group, int(match[1]) - _STARTS[group], match[2])
    if match := re.fullmatch(r'blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)', name):  # timm
        names = _TIMM_FIRST if match[1] == '0' else _TIMM
        return f'layer{int(match[1]) + 1}.{match[2]}.{names.get(match[3], match[3])}.{match[4]}'
    if match := re.fullmatch(r'layer(\d+)\.(\d+)\.(.+)', name):
        return _in_block(int(match[1]) - 1, int(match[2]), match[3])
    return name


def mobilenet_names(source: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the common names of a plain MobileNetV2's parameters to the keys of a checkpoint.

    Args:
        source (Mapping[str, Tensor]): Tensors by name, of a MobileNetV2 or of a model with one as
            backbone, in the layout of torchvision, timm, mmpretrain or mmdet.

    Returns:
        dict[str, str]: Key in the checkpoint by common name, for the backbone and the classifier ``fc``.
        Other parts, such as the neck and heads of a detector, are left out.

    Raises:
        TransferError: If two keys have the same common name.
    """
    prefix = backbone_prefix(source)
    names: dict[str, str] = {}
    for key in source:
        if not key.startswith(prefix) and not re.match(_CLASSIFIER, key):
            continue
        name = _common_name(key.removeprefix(prefix))
        if name in names:
            raise TransferError(f'{names[name]} and {key} are both {name} of a MobileNetV2')
        names[name] = key
    return names
