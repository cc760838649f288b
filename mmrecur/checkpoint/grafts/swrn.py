"""Plain Wide ResNets grafted into networks with template banks (SWRN)."""

from __future__ import annotations

import torch

from mmrecur.checkpoint.absent_parameters import why_absent
from mmrecur.checkpoint.converters.soft_sharing import bank_layers, wide_name
from mmrecur.checkpoint.grafts.graft import GraftTransfer, register_graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.models.layers.template_bank.fit import fit_templates


@register_graft(SWRN)
def graft_swrn(transfer: GraftTransfer) -> None:
    """Fill an SWRN from a plain Wide ResNet.

    The graft is exact if a bank has as many templates as layers. Otherwise the templates are the best fit
    of that rank, and the report holds the relative error of each bank.

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
    for name, bank, layers in bank_layers(transfer):
        keys = [transfer.plain.get(layer) for layer in layers]
        if None in keys:
            continue  # finish() reports the bank as missing
        error = _fill_bank(transfer, name, bank, keys)
        transfer.report.errors[name] = error
        if bank.num_templates < bank.num_layers:
            transfer.report.notes.append(
                f'{name}: {bank.num_templates} templates make up {bank.num_layers} layers with a relative '
                f'error of {error:.3g}'
            )
    done = {**transfer.report.transformed, **transfer.report.initial}
    for name in transfer.backbone_keys():
        if transfer.prefix + name not in done:
            transfer.take(name)
    used = transfer.used_sources()
    for name, key in transfer.plain.items():
        if key not in used and not name.startswith('fc.') and (why := why_absent(name, backbone)):
            transfer.drop(key, why)


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
