"""Wide residual networks, with banks or plain, in their authors' layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from mmrecur.checkpoint.layouts import why_absent
from mmrecur.checkpoint.transfer import Transfer
from mmrecur.errors import TransferError
from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.models.layers.template_bank.fit import fit_templates

#: Layouts of three-stage networks -> the names here. The first three are those of the SWRN authors' code,
#: the next of the PyTorch Wide ResNet that it builds on.
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r'^conv_3x3\.', 'conv1.'),
        (r'^stage_(\d)\.', r'layer\1.'),
        (r'^lastact\.0\.', 'final_norm.'),
        (r'^block(\d)\.layer\.', r'layer\1.'),
        (r'\.convShortcut\.', '.downsample.'),
        (r'^(classifier|fc)\.', 'head.fc.'),
    ]
)
_BANK = re.compile(r'bank_(\d)\.templates|stage_(\d)\.\d+\.(?:conv\d\.)?bank\.templates')
_SAME = 'the bank again, at another place'


def wide_name(key: str, three_stages: bool = True) -> str:
    """Name in this package of a key of a Wide ResNet.

    Args:
        key (str): The key, without prefixes such as ``module.``.
        three_stages (bool): Whether it is a network for small images, whose ``bn1`` is the last norm.

    Returns:
        str: The name in a backbone, or ``head.fc...``.
    """
    for pattern, replacement in _NAMES:
        key = pattern.sub(replacement, key)
    return re.sub(r'^bn1\.', 'final_norm.', key) if three_stages else key


def layer_name(stage: str, block: int, layer: str) -> str:
    """Name that the weight of a layer has without sharing, ``layer1.1.conv1.weight``."""
    return f'{stage}.{block}.{layer}.weight'


def bank_layers(transfer: Transfer) -> Iterable[tuple[str, TemplateBank, list[str]]]:
    """Banks of a backbone with the names that their layers' weights would have without them.

    Args:
        transfer (Transfer): A transfer to a model with an ``SWRN``.

    Yields:
        tuple[str, TemplateBank, list[str]]: The bank's name, the bank, the names of the weights.
    """
    for name, bank in transfer.backbone.banks().items():
        stage, own = name.rsplit('.', 1)
        places = getattr(transfer.backbone, stage).groups[own]
        yield name, bank, [layer_name(stage, block, layer) for block, layer in places]


def fill_bank(transfer: Transfer, name: str, bank: TemplateBank, keys: list[str]) -> float:
    """Give a bank templates and coefficients that make up plain layers' weights.

    Args:
        transfer (Transfer): Where the tensors go.
        name (str): The bank's name in the backbone.
        bank (TemplateBank): The bank.
        keys (list[str]): Source keys of the layers' weights.

    Returns:
        float: Relative error of the weights; 0 if shapes do not fit, which the transfer reports.

    Raises:
        TransferError: If the bank is folded.
    """
    if bank.rows is not None:
        raise TransferError(f'{name} is folded, allowed: a model without folding')
    prefix = f'{transfer.prefix}{name}.'
    if wrong := [key for key in keys if transfer.source[key].shape != bank.weight_shape]:
        for key in wrong:
            transfer.mismatch(f'layers of {prefix[:-1]}', bank.weight_shape, [key], transfer.source[key])
        return 0.0
    given = transfer.target[prefix + 'coefficients']
    # in the model's precision: solved for in that of a half-precision checkpoint it would be less than exact
    stacked = torch.stack([transfer.source[key] for key in keys]).to(given.dtype)
    coefficients, templates, error = fit_templates(stacked, bank.num_templates, given)
    layers, count = bank.num_layers, bank.num_templates
    how = (
        'solved for the bank: exact'
        if count >= layers
        else f'best of rank {count} for {layers} layers, relative error {error:.3g}'
    )
    transfer.transform(prefix + 'templates', keys, templates.flatten(0, 1), how)
    if torch.equal(coefficients, given):
        transfer.leave(prefix + 'coefficients', 'any independent ones do')
    else:
        transfer.transform(prefix + 'coefficients', keys, coefficients, how)
    return error


def _coefficient_keys(names: dict[str, str], layers: list[str]) -> list[str] | None:
    """Source keys of the coefficients of some layers; None if there are none."""
    wanted = [layer.removesuffix('weight') + 'coefficients' for layer in layers]
    return [names[key] for key in wanted] if all(key in names for key in wanted) else None


def convert_soft_sharing(transfer: Transfer) -> None:
    """Rule of :func:`convert` for the SWRN authors' layout.

    There a bank hangs from every block and layer that draws from it, so a checkpoint has it many times.
    As in loading that checkpoint, the last one counts.

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
            own + 'templates', [bank_keys[stage][-1]], templates.flatten(0, 1), 'templates in one row'
        )
        rows = torch.stack([source[key].flatten() for key in keys])
        transfer.transform(own + 'coefficients', keys, rows, 'a row of each layer')
        for key in bank_keys[stage][:-1]:
            transfer.drop(key, _SAME)
    used = transfer.used_sources() | set(transfer.report.unused)
    for name, key in names.items():
        if key not in used:
            take(transfer, name, key)
    for stage, keys in bank_keys.items():
        for key in keys:
            if (why := why_absent(f'{stage}.', transfer.backbone)) and key not in used:
                transfer.drop(key, why)
    transfer.leave_counters_and_other_parts()


def take(transfer: Transfer, name: str, key: str) -> None:
    """Copy a tensor to the place of its name, or say why there is none."""
    is_head = name.startswith('head.')
    ours = name if is_head else transfer.prefix + name
    if ours in transfer.target:
        transfer.copy(ours, key)
    elif why := absent(name, transfer.backbone):
        transfer.drop(key, why)


def absent(name: str, backbone: torch.nn.Module) -> str | None:
    """Why an ``SWRN`` may lack a parameter, see :func:`why_absent`."""
    if name.startswith('final_norm.') and getattr(backbone, 'final_norm', None) is None:
        return 'the last stage is not built, it lies behind the last of out_indices'
    return why_absent(name, backbone)
