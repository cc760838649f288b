"""Template banks fitted to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.data_fit import fit_bank
from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.checkpoint.grafts.shared_layers import (
    FITTED,
    SharedLayer,
    norm_behind,
    normalised,
    set_norm,
    shared_layers,
)
from mmrecur.models.layers.template_bank.fit import fit_templates


def refit_banks(
    transfer: GraftTransfer, network: nn.Module, banks: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Fit template banks to the images by alternating least squares, one bank at a time.

    Args:
        transfer (GraftTransfer): A graft that has filled the backbone without the images.
        network (nn.Module): See :func:`plain_network`.
        banks (Mapping[str, Sequence[str]]): For each bank, the convolutions that take their weights from it.

    Returns:
        dict[str, float]: Relative error of the outputs of each bank's convolutions.
    """
    return {
        name: _refit(transfer, name, shared_layers(transfer, network, places))
        for name, places in banks.items()
    }


def _refit(transfer: GraftTransfer, name: str, layers: dict[str, SharedLayer]) -> float:
    bank, own = transfer.backbone.get_submodule(name), [*layers.values()]
    targets, common = normalised(own)
    # all layers count equally, whatever the scale of their outputs
    energies = torch.stack([((weight @ layer.metric) * weight).sum() for weight, layer in zip(targets, own)])
    sizes = energies.sqrt().clamp(min=1e-30).view(-1, 1, 1, 1)
    stacked = (torch.stack(targets) / sizes)[:, 0]
    factors, templates, _ = fit_templates(stacked, bank.num_templates)
    factors, templates = fit_bank([*stacked], [layer.metric[0] for layer in own], factors, templates)
    fits = torch.einsum('lk,ktc->ltc', factors, templates).unsqueeze(1) * sizes
    keys = [layer.key for layer in own]
    _put(transfer, f'{name}.templates', keys, templates)
    _put(transfer, f'{name}.coefficients', keys, factors * sizes.view(-1, 1))
    errors = []
    for (place, layer), fit in zip(layers.items(), fits):
        errors.append(layer.error(fit if layer.norm is None else fit * layer.deviation / common))
        if layer.norm is not None:
            norm = norm_behind(transfer.backbone, place)
            set_norm(transfer, norm, norm, layer.norm_values(fit), [layer.key])
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def _put(transfer: GraftTransfer, name: str, keys: list[str], tensor: Tensor) -> None:
    target = transfer.target[transfer.prefix + name]
    transfer.transform(transfer.prefix + name, keys, tensor.reshape(target.shape).to(target), FITTED)
