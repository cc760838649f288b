"""Checkpoints of the authors' Wide ResNets, plain or with template banks (SWRN)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.transfer import Transfer
from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import TemplateBank

#: Rules from the authors' names of three-stage networks to ours. The first three are for the SWRN code, the
#: next for the PyTorch Wide ResNet that it builds on.
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r'^conv_3x3\.', 'conv1.'),
        (r'^stage_(\d)\.', r'layer\1.'),
        (r'^lastact\.0\.', 'final_norm.'),
        (r'^block(\d)\.layer\.', r'layer\1.'),
        (r'\.convShortcut\.', '.downsample.'),
        (r'^bn1\.', 'final_norm.'),
        (r'^(classifier|fc)\.', 'head.fc.'),
    ]
)
_BANK = re.compile(r'bank_(\d)\.templates|stage_(\d)\.\d+\.(?:conv\d\.)?bank\.templates')


def wide_name(key: str) -> str:
    """Return our name for a key of a three-stage Wide ResNet.

    Args:
        key (str): The key, without prefixes such as ``module.``.

    Returns:
        str: The name in the backbone, or ``head.fc...`` for the classifier.
    """
    for pattern, replacement in _NAMES:
        key = pattern.sub(replacement, key)
    return key


def bank_layers(transfer: Transfer) -> Iterable[tuple[str, TemplateBank, list[str]]]:
    """Iterate over the template banks of a backbone and the layers that use them.

    Args:
        transfer (Transfer): A transfer to a model with an ``SWRN``.

    Yields:
        tuple[str, TemplateBank, list[str]]: The bank's name, the bank, and the names that the layers'
        weights have in the plain network, such as ``layer1.1.conv1.weight``.
    """
    for name, bank in transfer.backbone.banks().items():
        stage, own = name.rsplit('.', 1)
        places = getattr(transfer.backbone, stage).groups[own]
        yield name, bank, [f'{stage}.{block}.{layer}.weight' for block, layer in places]


def _coefficient_keys(names: dict[str, str], layers: list[str]) -> list[str] | None:
    """Return the source keys of the layers' coefficients; None if any is missing."""
    wanted = [layer.removesuffix('weight') + 'coefficients' for layer in layers]
    return [names[key] for key in wanted] if all(key in names for key in wanted) else None


def convert_soft_sharing(transfer: Transfer) -> None:
    """Fill an ``SWRN`` from a checkpoint of the authors' code.

    In their checkpoints a bank has one key in every layer that uses it. The last key is used, as when the
    authors' code loads the checkpoint.

    Args:
        transfer (Transfer): The transfer to fill.

    Raises:
        ValueError: If the backbone is of another family.
    """
    transfer.require('soft_sharing', SWRN, 'mmrecur.SWRN')
    source, prefix = transfer.source, transfer.prefix
    bank_keys: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for key in source:
        if match := _BANK.fullmatch(key):
            bank_keys.setdefault(f'layer{match[1] or match[2]}', []).append(key)
        else:
            names[wide_name(key)] = key
    for name, _, layers in bank_layers(transfer):
        stage = name.split('.')[0]
        keys = _coefficient_keys(names, layers)
        if stage not in bank_keys or keys is None:
            continue
        templates = source[bank_keys[stage][-1]]
        own = f'{prefix}{name}.'
        transfer.transform(
            own + 'templates', [bank_keys[stage][-1]], templates.flatten(0, 1), 'templates flattened'
        )
        rows = torch.stack([source[key].flatten() for key in keys])
        transfer.transform(own + 'coefficients', keys, rows, 'one row per layer')
        for key in bank_keys[stage][:-1]:
            transfer.drop(key, 'the same bank under another name')
    used = transfer.used_sources() | set(transfer.report.unused)
    for name, key in names.items():
        if key not in used:
            _take(transfer, name, key)
    for stage, keys in bank_keys.items():
        for key in keys:
            if (why := why_absent(f'{stage}.', transfer.backbone)) and key not in used:
                transfer.drop(key, why)
    transfer.leave_counters_and_other_parts()


def _take(transfer: Transfer, name: str, key: str) -> None:
    """Copy a tensor to the target of the same name, or report why the model has no such target."""
    is_head = name.startswith('head.')
    ours = name if is_head else transfer.prefix + name
    if ours in transfer.target:
        transfer.copy(ours, key)
    elif why := why_absent(name, transfer.backbone):
        transfer.drop(key, why)
