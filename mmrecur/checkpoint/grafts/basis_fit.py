"""Shared filter bases fitted to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checkpoint.grafts.data_fit import (
    coefficients,
    fit_basis,
    orthonormal_rows,
    principal_filters,
)
from mmrecur.checkpoint.grafts.graft import GraftTransfer
from mmrecur.checkpoint.grafts.shared_layers import (
    FITTED,
    SharedLayer,
    fit_as_a_whole,
    norm_behind,
    set_norm,
    shared_layers,
)
from mmrecur.models.layers.common.fuse import is_fusible
from mmrecur.models.layers.filter_basis import BasisConv2d


def refit_bases(
    transfer: GraftTransfer, network: nn.Module, groups: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, float]:
    """Fit the bases of a backbone to the images, stage by stage.

    Args:
        transfer (GraftTransfer): A graft that has filled the backbone without the images.
        network (nn.Module): See :func:`plain_network`.
        groups (Mapping[str, Mapping[str, Sequence[str]]]): For each stage, the convolutions that read each
            of its bases.

    Returns:
        dict[str, float]: Relative error of the outputs of each convolution.
    """
    errors: dict[str, float] = {}
    for stage, bases in groups.items():
        layers = shared_layers(transfer, network, [place for places in bases.values() for place in places])
        for name, places in bases.items():
            own = {place: layers[place] for place in places}
            whole = isinstance(transfer.backbone.get_submodule(places[0]), BasisConv2d)
            errors.update((_fit_whole if whole else _fit_factorized)(transfer, f'{stage}.basis.{name}', own))
    return errors


def _fit_whole(transfer: GraftTransfer, basis: str, layers: dict[str, SharedLayer]) -> dict[str, float]:
    """Fit a convolution that several blocks share as a whole, and the norms behind it."""
    filters, errors = fit_as_a_whole([*layers.values()])
    _put(transfer, f'{basis}.weight', filters, [*layers.values()])
    for place, layer in layers.items():
        _refit_norm(transfer, place, layer, filters)
    return dict(zip(layers, errors))


def _fit_factorized(transfer: GraftTransfer, basis: str, layers: dict[str, SharedLayer]) -> dict[str, float]:
    """Fit a basis, then the unique filters and the coefficients of each layer that reads it."""
    shape = transfer.target[f'{transfer.prefix}{basis}.weight'].shape
    scales = [1 / layer.deviation[0] for layer in layers.values()]
    weights = [layer.weight[0] for layer in layers.values()]
    metrics = [layer.metric[0] for layer in layers.values()]
    shared = fit_basis(weights, metrics, scales, shape[0])
    _put(transfer, f'{basis}.weight', shared, [*layers.values()])
    errors = {}
    for (place, layer), scale in zip(layers.items(), scales):
        module, filters = transfer.backbone.get_submodule(place), shared
        if module.unique is not None:
            unique = _unique_filters(layer, scale, shared, len(module.unique.weight))
            filters = torch.cat([unique, shared])
            _put(transfer, f'{place}.unique.weight', unique, [layer])
        factors = coefficients(layer.weight[0], filters, layer.metric[0])
        _put(transfer, f'{place}.coefficients.weight', factors, [layer])
        fit = (factors @ filters).unsqueeze(0)
        errors[place] = layer.error(fit)
        if module.norm is not None and is_fusible(module.norm):
            set_norm(transfer, f'{place}.norm', '', _measured(layer, filters, module.norm.eps), [layer.key])
        _refit_norm(transfer, place, layer, fit)
    return errors


def _unique_filters(layer: SharedLayer, scale: Tensor, shared: Tensor, rank: int) -> Tensor:
    """Return orthonormal filters for what the shared ones leave of a layer."""
    weight, metric = layer.weight[0], layer.metric[0]
    rest = scale * (weight - coefficients(weight, shared, metric) @ shared)
    unique = principal_filters(rest, metric, rank)
    if len(shared) + rank > shared.size(1):
        return orthonormal_rows(unique)
    return orthonormal_rows(torch.cat([shared, unique]))[len(shared) :]


def _measured(layer: SharedLayer, filters: Tensor, eps: float) -> dict[str, Tensor]:
    """Return the tensors of a norm that is the identity on the images, in training too."""
    mean = filters @ layer.statistics.mean[0]
    variance = ((filters @ layer.statistics.covariance[0]) * filters).sum(1).clamp(min=0)
    return dict(running_mean=mean, running_var=variance, weight=(variance + eps).sqrt(), bias=mean)


def _refit_norm(transfer: GraftTransfer, place: str, layer: SharedLayer, fit: Tensor) -> None:
    if layer.norm is not None:
        name = norm_behind(transfer.backbone, place)
        set_norm(transfer, name, name, layer.norm_values(fit), [layer.key])


def _put(transfer: GraftTransfer, name: str, tensor: Tensor, layers: Sequence[SharedLayer]) -> None:
    target = transfer.target[transfer.prefix + name]
    keys = [layer.key for layer in layers]
    transfer.transform(transfer.prefix + name, keys, tensor.reshape(target.shape).to(target), FITTED)
