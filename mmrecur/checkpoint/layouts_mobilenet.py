"""Names of plain MobileNetV2's parameters in the libraries they come from, made one.

The common names are :class:`RLAMobileNetV2`'s: ``layer2.0.conv1.weight`` to ``layer2.0.bn3.weight`` for the
expansion, the depthwise convolution and the projection of a block, ``conv1`` and ``conv2`` for the network's
first and last convolution, ``fc`` for the classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor, nn

from mmrecur.checkpoint.layouts import backbone_prefix, why_absent
from mmrecur.errors import TransferError
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2

#: Blocks in each group, and the number of the first one where they are counted through from 1.
_BLOCKS = [num_blocks for _, _, num_blocks, _ in RLAMobileNetV2.arch_settings]
_STARTS = [1 + before for before in accumulate([0, *_BLOCKS[:-1]])]

_CLASSIFIER = r'(?:classifier\.1|classifier|head\.fc|head\.layers\.\d+|fc)\.'
#: A norm in MMCV's ConvModule is called by its type.
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
#: timm's block without expansion, whose projection is the second layer.
_TIMM_FIRST = {'conv_dw': 'conv2', 'bn1': 'bn2', 'conv_pw': 'conv3', 'bn2': 'bn3'}
_MMDET = {'expand_conv': '1', 'depthwise_conv': '2', 'linear_conv': '3'}


def _sequential(index: str, leaf: str, first: bool) -> str:
    """Layer of a block that is a sequence of ``(conv, norm, relu)`` and ends with ``conv, norm``."""
    position = int(index) + (2 if first else 1)
    if leaf in ('0', '1'):  # torchvision: inside a triple
        return ('conv', 'bn')[int(leaf)] + str(position)
    # the last convolution and, one place further, its norm
    return 'conv3' if position == 3 else 'bn3'


def _in_block(group: int, block: int, rest: str) -> str:
    """Common name of a parameter in a block, numbered from 0, in any layout."""
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
    if match := re.fullmatch(r'features\.(\d+)\.(.+)', name):  # torchvision counts blocks through
        group = max(i for i, start in enumerate(_STARTS) if start <= int(match[1]))
        return _in_block(group, int(match[1]) - _STARTS[group], match[2])
    if match := re.fullmatch(r'blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)', name):  # timm
        names = _TIMM_FIRST if match[1] == '0' else _TIMM
        return f'layer{int(match[1]) + 1}.{match[2]}.{names.get(match[3], match[3])}.{match[4]}'
    if match := re.fullmatch(r'layer(\d+)\.(\d+)\.(.+)', name):
        return _in_block(int(match[1]) - 1, int(match[2]), match[3])
    return name


def mobilenet_names(source: Mapping[str, Tensor]) -> dict[str, str]:
    """Common names of a plain MobileNetV2's parameters.

    Args:
        source (Mapping[str, Tensor]): Checkpoint of a MobileNetV2, or of a model with one as backbone,
            in the layout of torchvision, timm, mmpretrain or mmdet.

    Returns:
        dict[str, str]: Common name -> key in the checkpoint, for the backbone and the classifier
        ``fc``. Other parts (neck, heads of a detector) are not in it.

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


def why_absent_mobilenet(name: str, backbone: nn.Module) -> str | None:
    """Why an RLAMobileNetV2 may lack a parameter that a checkpoint has.

    Args:
        name (str): Common name.
        backbone (nn.Module): The RLAMobileNetV2.

    Returns:
        str, optional: The reason; None if there is none.
    """
    if re.match(r'(conv2|bn2|conv2_hidden|hidden_norm)\.', name) and not backbone.ends:
        return 'the stage is not built, it lies behind the last of out_indices'
    if name.startswith(f'layer{backbone.num_stages}.rla.') and not backbone.ends:
        return 'belongs to the last update of the state, which nothing reads'
    of_each_stage = backbone.recurrent_sharing == 'stage'
    if name.startswith('recurrent_convs.') and of_each_stage and not backbone.ends:
        return 'belongs to stages that are not built or whose updates nothing reads'
    return why_absent(name, backbone)
