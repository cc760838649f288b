"""Checkpoints of the filter basis authors' networks (ResNet-Shared)."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.transfer import Transfer
from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone

#: Rules from the authors' names to ours, applied in this order.
_RENAMES: tuple[tuple[re.Pattern, str | Callable[[re.Match], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r'^(?:fc|linear|classifier\.1)\.', 'head.fc.'),
        # MobileNetV2: stem, head, and stages of one block
        (r'^pre\.0\.', 'conv1.'),
        (r'^pre\.1\.', 'bn1.'),
        (r'^conv1\.0\.', 'conv2.'),
        (r'^conv1\.1\.', 'bn2.'),
        (r'^stage(\d)\.(?=conv|bn)', r'layer\1.0.'),
        (r'^stage(\d)\.', r'layer\1.'),
        (r'\.chan_attention\.', '.attention.'),
        # ResNeXt: a block without sharing is a sequence of (conv, norm, relu)
        (
            r'\.residual_function\.([013467])\.',
            lambda m: f'.{("conv", "bn")[int(m[1]) % 3]}{int(m[1]) // 3 + 1}.',
        ),
        # DenseNet
        (r'^features\.bn\.', 'norm.'),
        (r'^features\.transition_layer_(\d)\.down_sample\.0\.', lambda m: f'transition{int(m[1]) + 1}.norm.'),
        (r'^features\.transition_layer_(\d)\.down_sample\.1\.', lambda m: f'transition{int(m[1]) + 1}.conv.'),
        (r'bottle_neck_layer_(\d+)\.bn([01])\.', lambda m: f'bottle_neck_layer_{m[1]}.norm{int(m[2]) + 1}.'),
        (
            r'^features\.dense_block_layer_(\d)\.bottle_neck_layer_(\d+)\.',
            lambda m: f'layer{int(m[1]) + 1}.{m[2]}.',
        ),
        # parts of a block
        (r'\.shortcut\.', '.downsample.'),
        (r'\.basis_conv(\d)\.', r'.conv\1.unique.'),
        (r'\.basis_bn(\d)\.', r'.conv\1.norm.'),
        (r'\.coeff_conv(\d)\.', r'.conv\1.coefficients.'),
    ]
)
_IN_NETWORK = re.compile(r'shared_basis_(\d)(?:_(\d))?\.weight')
_IN_BLOCK = re.compile(r'layer(\d)\.\d+\.shared_basis_?(\d)?\.weight')


def _our_name(key: str) -> str:
    """Translate a key of the authors' checkpoints, except those of shared bases, into our name."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def convert_net_rl2(transfer: Transfer) -> None:
    """Fill a backbone with shared bases from a checkpoint of the authors' code.

    In their checkpoints a shared tensor has one key in every module that holds it. The last key is used, as
    when the authors' code loads the checkpoint.

    Args:
        transfer (Transfer): The transfer to fill.

    Raises:
        ValueError: If the backbone is of another family.
    """
    allowed = 'one with shared filter bases, such as mmrecur.ResNetShared'
    transfer.require('net_rl2', SharedBasisBackbone, allowed)
    source, target, prefix = transfer.source, transfer.target, transfer.prefix
    places: dict[str, list[str]] = {}
    for key in source:
        name = _our_name(key)
        if 'shared_basis' in name:
            owner = _owner(name, transfer.backbone)
            if owner is not None:
                places.setdefault(owner, []).append(key)
            continue
        ours = name if name.startswith('head.') else prefix + name
        if ours in target:
            transfer.copy(ours, key)
        elif why := why_absent(name.removeprefix('head.'), transfer.backbone):
            transfer.drop(key, why)
    for owner, keys in places.items():
        _take_shared(transfer, owner, keys)
    _fill_last_block(transfer)
    for key in target:
        if not key.startswith((prefix, 'head.fc.')):
            transfer.leave(key, 'not part of the backbone')


def _owner(name: str, backbone: SharedBasisBackbone) -> str | None:
    """Return our name for a shared basis of the authors', such as ``layer2.basis.conv1.weight``.

    Returns:
        str, optional: The name; empty if the stage has no basis, so that no block reads it; None if the
        stage has fewer bases.
    """
    owners = [stage for stage in backbone.stages if getattr(backbone, stage).basis is not None]
    if match := _IN_NETWORK.fullmatch(name):
        # the number counts only stages that share
        group = int(match[1]) - 1
        stage = owners[group] if group < len(owners) else ''
    else:
        match = _IN_BLOCK.fullmatch(name)
        stage = f'layer{match[1]}' if match else ''
        stage = getattr(backbone, 'basis_of', {}).get(stage, stage)
    if stage not in owners:
        return ''
    names = list(getattr(backbone, stage).basis)
    place = int(match[2] or 1) - 1
    return f'{stage}.basis.{names[place]}.weight' if place < len(names) else None


def _take_shared(transfer: Transfer, owner: str, keys: list[str]) -> None:
    """Copy the last of the keys of one shared tensor and drop the others."""
    *others, last = keys
    if not owner:
        for key in keys:
            transfer.drop(key, 'no block of the model reads it')
        return
    transfer.copy(transfer.prefix + owner, last)
    for key in others:
        transfer.drop(key, f'the same tensor as {last}')
    tensors = transfer.source
    differing = [key for key in others if not torch.equal(tensors[key], tensors[last])]
    if differing:
        transfer.report.notes.append(
            f'{len(differing)} keys should hold the same tensor as {last} but differ; {last} is used, as in '
            f"the authors' code. The others: {', '.join(differing)}"
        )


def _fill_last_block(transfer: Transfer) -> None:
    """Fill the basis of the fourth dense block with that of the third, which the authors' network reads."""
    ours, theirs = (f'layer{i}.basis.conv2.weight' for i in (4, 3))
    copied = transfer.report.copied
    last_reads_third = any('dense_block_layer_3' in key for key in transfer.source)
    key = copied.get(transfer.prefix + theirs)  # None if it is missing or has another shape
    if last_reads_third and key is not None and transfer.prefix + ours in transfer.target:
        unused = copied.pop(transfer.prefix + ours, None)
        if unused is not None:
            transfer.drop(unused, "no block of the authors' network reads it")
        transfer.transform(
            transfer.prefix + ours,
            [key],
            transfer.source[key],
            "the basis of the authors' fourth block",
        )
