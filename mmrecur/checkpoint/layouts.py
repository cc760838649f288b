"""Names of plain networks' parameters in the libraries they come from, made one.

The common names are torchvision's (``layer1.0.conv1.weight``, ``fc.weight``), with MMDetection's for the
three convolutions of a ResNet-D stem (``stem.0`` to ``stem.7``), which torchvision does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from mmrecur.errors import TransferError

#: What a backbone's names start with in some checkpoint or other; the longest that fits is taken off.
_BACKBONE_PREFIXES = ('backbone.', 'encoder.', 'img_backbone.', 'model.backbone.')

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
        # global context blocks of mmdet's GCNets
        (r'(layer\d\.\d+)\.context_block\.', r'\1.attention.'),
    ]
)


def backbone_prefix(keys: Iterable[str]) -> str:
    """Prefix of the backbone's parameters in a checkpoint.

    Args:
        keys (Iterable[str]): Names in the checkpoint.

    Returns:
        str: ``'backbone.'`` or the like, or an empty string if the checkpoint is a backbone or a
        classifier without one.
    """
    keys = list(keys)
    fitting = [p for p in _BACKBONE_PREFIXES if any(key.startswith(p) for key in keys)]
    return max(fitting, key=len, default='')


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What starts with a prefix, without it.

    Args:
        state (Mapping[str, Tensor]): Tensors by name.
        prefix (str): With its dot, such as ``'backbone.'``.

    Returns:
        dict[str, Tensor]: The tensors under their shorter names.
    """
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def plain_names(source: Mapping[str, Tensor]) -> dict[str, str]:
    """Common names of a plain network's parameters.

    Args:
        source (Mapping[str, Tensor]): Checkpoint of a ResNet, ResNeXt, SE-ResNet, ECA-ResNet or
            ResNet-D, or of a model with one as backbone, in the layout of torchvision, timm,
            mmpretrain or mmdet.

    Returns:
        dict[str, str]: Common name -> key in the checkpoint, for the backbone and the classifier
        ``fc``. Other parts (neck, heads of a detector) are not in it.

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


def why_absent(name: str, backbone: nn.Module) -> str | None:
    """Why a backbone may lack a parameter that a checkpoint has.

    Args:
        name (str): Name in this package, without the backbone's prefix; ``fc`` for a classifier's.
        backbone (nn.Module): The backbone.

    Returns:
        str, optional: The reason; None if there is none.
    """
    if name.startswith(('head.fc.', 'fc.')):
        return 'the model has no such classifier'
    with_hidden = getattr(backbone, 'with_hidden', False)
    if name.startswith('hidden_norm.') and not with_hidden:
        return 'the model does not return its state (with_hidden=False)'
    if hasattr(backbone, 'basis_groups') and re.match(r'(transition\d|norm|conv2|bn2)\.', name):
        return 'stands between or behind stages that are not built, they lie behind the last of out_indices'
    if match := re.match(r'layer(\d+)\.', name):
        stage = int(match[1])
        if stage > backbone.num_stages:
            return 'the stage is not built, it lies behind the last of out_indices'
        if getattr(backbone, 'rla_channels', None) == 0 and '.rla.' in name:
            return 'the model has no recurrent path (rla_channels=0)'
        own = re.search(r'\.rla\.(norms|steps)\.', name)
        if stage == backbone.num_stages and own and not with_hidden:
            return 'belongs to the last update of the state, which nothing reads'
    return None
