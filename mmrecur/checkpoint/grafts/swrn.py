"""Plain Wide ResNets grafted into networks with template banks (SWRN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.converters.soft_sharing import bank_layers, wide_name
from mmrecur.checkpoint.grafts.align import align_blocks
from mmrecur.checkpoint.grafts.bank_fit import refit_banks
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.checkpoint.grafts.plain_network import plain_network, refit_if_closer
from mmrecur.errors import TransferError
from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.models.layers.template_bank.fit import fit_templates


@register_graft(SWRN)
def graft_swrn(transfer: GraftTransfer) -> None:
    """Fill an SWRN from a plain Wide ResNet.

    The graft is exact if a bank has as many templates as layers. Otherwise the templates are the best fit
    of that rank to the layers, whose inner channels are first brought into one order (:func:`align_blocks`).
    With images, alternating least squares improve the fit of the outputs. The report holds the relative
    error of each bank.

    Four-stage networks may have torchvision's, timm's, mmpretrain's or mmdet's names of
    ``wide_resnet50_2``. Three-stage networks may have this package's (``num_templates=None``), those of the
    SWRN authors or those of the PyTorch Wide ResNet (``block1.layer.0.conv1.weight``).

    Args:
        transfer (GraftTransfer): The transfer to fill.

    Raises:
        TransferError: If layers of the model are tied.
    """
    backbone = transfer.backbone
    if not backbone.has_bottlenecks:
        names = set(transfer.backbone_keys())
        transfer.plain = {
            (name if name in names else wide_name(name)).replace('head.fc.', 'fc.'): key
            for name, key in transfer.plain.items()
        }
    inexact = _inexact_banks(transfer)
    _align(transfer, inexact)
    for name, bank, layers in bank_layers(transfer):
        keys = [transfer.plain.get(layer) for layer in layers]
        if None in keys:
            continue  # finish() reports the bank as missing
        transfer.report.errors[name] = _fill_bank(transfer, name, bank, keys)
    done = {**transfer.report.transformed, **transfer.report.initial}
    for name in transfer.backbone_keys():
        if transfer.prefix + name not in done:
            transfer.take(name)
    what = 'weights'
    if transfer.images is not None and inexact:
        network = plain_network(transfer)
        if errors := refit_if_closer(transfer, network, lambda: refit_banks(transfer, network, inexact)):
            transfer.report.errors.update(errors)
            what = 'outputs'
    for name in inexact:
        bank, error = backbone.get_submodule(name), transfer.report.errors[name]
        transfer.report.notes.append(
            f'{name}: {bank.num_templates} templates make up {bank.num_layers} layers with a relative '
            f'error of {error:.3g} of the {what}'
        )
    used = transfer.used_sources()
    for name, key in transfer.plain.items():
        if key not in used and not name.startswith('fc.') and (why := why_absent(name, backbone)):
            transfer.drop(key, why)


def _inexact_banks(transfer: GraftTransfer) -> dict[str, list[str]]:
    """Return the layers of the banks with fewer templates than layers, if the source has them all."""
    banks = {}
    for name, bank, layers in bank_layers(transfer):
        shapes = {
            transfer.source[transfer.plain[key]].shape if key in transfer.plain else None for key in layers
        }
        if bank.num_templates < bank.num_layers and bank.rows is None and shapes == {bank.weight_shape}:
            banks[name] = [layer.removesuffix('.weight') for layer in layers]
    return banks


def _align(transfer: GraftTransfer, banks: Mapping[str, Sequence[str]]) -> None:
    """Align the inner channels of the blocks that share templates, stage by stage."""
    stages: dict[str, dict[str, set[str]]] = {}
    for place in sorted(place for places in banks.values() for place in places):
        stage, index, conv = place.split('.')
        stages.setdefault(stage, {}).setdefault(f'{stage}.{index}', set()).add(conv)
    for shared in stages.values():
        align_blocks(transfer, transfer.backbone.get_submodule(next(iter(shared))), shared)


def _fill_bank(transfer: GraftTransfer, name: str, bank: TemplateBank, keys: list[str]) -> float:
    """Fit a bank's templates and coefficients to the weights of plain layers.

    Args:
        transfer (GraftTransfer): The transfer to fill.
        name (str): The bank's name in the backbone.
        bank (TemplateBank): The bank.
        keys (list[str]): Source keys of the layers' weights.

    Returns:
        float: Relative error of the weights; 0 if shapes do not fit, which the transfer reports.

    Raises:
        TransferError: If layers of the bank are tied.
    """
    if bank.rows is not None:
        raise TransferError(f'{name} has tied layers, allowed: a bank without tied layers')
    prefix = f'{transfer.prefix}{name}.'
    if wrong := [key for key in keys if transfer.source[key].shape != bank.weight_shape]:
        for key in wrong:
            transfer.mismatch(f'layers of {prefix[:-1]}', bank.weight_shape, [key], transfer.source[key])
        return 0.0
    given = transfer.target[prefix + 'coefficients']
    # a fit in the precision of a half-precision checkpoint would not be exact
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
        transfer.leave(prefix + 'coefficients', 'kept: any independent coefficients fit')
    else:
        transfer.transform(prefix + 'coefficients', keys, coefficients, how)
    return error
