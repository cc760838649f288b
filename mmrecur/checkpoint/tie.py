"""Tying of similar layers, so that one layer runs several times (the paper calls this folding)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.layers.template_bank import TemplateBank, check_banks, layer_similarity, template_banks


@dataclass(frozen=True)
class TiedBank:
    """Result of tying the L layers of one template bank.

    Attributes:
        rows (tuple[int, ...]): For each layer, the index of its distinct layer.
        scales (Tensor): Factor of each layer, negative if its sign is flipped, shape (L,).
        coefficients (Tensor): Coefficients of the R distinct layers over k templates, shape (R, k).
        templates (Tensor): The new templates, in the shape of :class:`TemplateBank`'s.
        similarity (Tensor): Layer similarity matrix before tying, shape (L, L).
        error (float): Relative change of the weights, ``||W' - W|| / ||W||``.
    """

    rows: tuple[int, ...]
    scales: Tensor
    coefficients: Tensor
    templates: Tensor
    similarity: Tensor
    error: float

    @property
    def is_tied(self) -> bool:
        """bool: Whether any two layers are tied."""
        return len(set(self.rows)) < len(self.rows)


@dataclass(frozen=True)
class TiedLayers:
    """Result of :func:`tie_layers`.

    Attributes:
        banks (dict[str, TiedBank]): All banks by their names in the model, with and without tied layers.
        parameters (tuple[int, int]): Number of the model's parameters before and after.
    """

    banks: dict[str, TiedBank]
    parameters: tuple[int, int]

    def arguments(self, prefix: str = '') -> dict[str, Any]:
        """Return the ``tied_layers`` argument with which to build the model with tied layers.

        Args:
            prefix (str): Prefix to remove from the names of the banks, such as ``'backbone.'``. Defaults
                to an empty string.

        Returns:
            dict: Rows by the parts of the bank's name, such as ``dict(layer2=dict(bank=[0, 1, 0, 1]))``.
        """
        arguments: dict[str, Any] = {}
        for name, bank in self.banks.items():
            if not bank.is_tied:
                continue
            *parents, own = name.removeprefix(prefix).split('.')
            inner = arguments
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[own] = list(bank.rows)
        return arguments

    def apply(self, model: nn.Module) -> nn.Module:
        """Tie the layers of a model in place and load the new weights of its banks.

        This works for models without a ``tied_layers`` argument, too.

        Args:
            model (nn.Module): The model given to :func:`tie_layers`, or one built in the same way.

        Returns:
            nn.Module: The same model.
        """
        for name, bank in self.banks.items():
            if bank.is_tied:
                model.get_submodule(name).tie(bank.rows, bank.scales, bank.coefficients, bank.templates)
        return model


def tie_layers(
    state_dict: Mapping[str, Tensor], model: nn.Module, threshold: float
) -> tuple[dict[str, Tensor], TiedLayers]:
    """Tie layers whose similarity reaches a threshold, Savarese and Maire 2019, Sections 3.2 and 4.3.

    Layers are tied if every two of them are similar enough. They are replaced by one distinct layer, whose
    multiples are closest to their weights. Each layer keeps its norm and a factor of its own, which is
    negative if its sign is flipped. Tying layers of similarity 1 does not change the network. If a bank has
    no more distinct layers than templates, the distinct layers become the new templates.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of the model.
        model (nn.Module): A model with template banks. It is not changed.
        threshold (float): Minimum similarity, above 0 and at most 1. To allow for rounding, 1 means
            ``1 - 1e-6``.

    Returns:
        tuple[dict[str, Tensor], TiedLayers]: A state dict for the model built with
        ``tied_layers=result.arguments()`` or for ``result.apply(model)``, and the result.

    Raises:
        ValueError: If the threshold is out of range, the model has no template bank, or the state dict does
            not have exactly the model's banks.

    Example:
        >>> from mmrecur.models.backbones import SWRN
        >>> model = SWRN(depth=16, width=2, num_templates=1)
        >>> state, tied = tie_layers(model.state_dict(), model, 0.9)  # one template: all layers are similar
        >>> tied.arguments()['layer2']
        {'bank': [0, 0]}
        >>> smaller = SWRN(16, 2, num_templates=1, tied_layers=tied.arguments())
        >>> smaller.load_state_dict(state)
        <All keys matched successfully>
    """
    if not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(f'threshold={threshold!r}, allowed: a number above 0 and at most 1')
    banks = template_banks(model)
    if not banks:
        raise ValueError('the model has no template bank, allowed: one with banks, before switch_to_deploy()')
    check_banks(state_dict, banks)
    tied = {name: _tie_bank(state_dict, name, bank, threshold) for name, bank in banks.items()}
    state = {key: value.detach().clone() for key, value in state_dict.items()}
    for name, bank in tied.items():
        if bank.is_tied:
            state[f'{name}.row_scales'] = bank.scales.clone()
            state[f'{name}.coefficients'] = bank.coefficients.clone()
            state[f'{name}.templates'] = bank.templates.clone()
    before = sum(p.numel() for p in model.parameters())
    change = sum(_size(bank, banks[name]) for name, bank in tied.items() if bank.is_tied)
    return state, TiedLayers(tied, (before, before + change))


def _size(tied: TiedBank, bank: TemplateBank) -> int:
    """Return the change of the number of parameters."""
    new = (tied.scales, tied.coefficients, tied.templates)
    return sum(t.numel() for t in new) - sum(p.numel() for p in bank.parameters())


def _tie_bank(state_dict: Mapping[str, Tensor], name: str, bank: TemplateBank, threshold: float) -> TiedBank:
    templates = state_dict[f'{name}.templates']
    coefficients = state_dict[f'{name}.coefficients'].double()
    if bank.rows is not None:
        scales = state_dict[f'{name}.row_scales'].double()
        coefficients = scales.unsqueeze(1) * coefficients[list(bank.rows)]
    flat = templates.double().reshape(bank.num_templates, -1)
    similarity = layer_similarity(coefficients)
    if bank.rows is None:
        rows = cluster(similarity, threshold)
    else:  # tied layers stay tied, even if they have learned a factor of 0
        merged = cluster(layer_similarity(state_dict[f'{name}.coefficients'].double()), threshold)
        rows = tuple(merged[row] for row in bank.rows)
    num_rows = max(rows) + 1
    scales = torch.ones(len(rows), dtype=torch.float64, device=flat.device)
    distinct = coefficients.new_zeros(num_rows, bank.num_templates)
    products = flat @ flat.t()  # inner products of the templates, which determine all distances
    for row in range(num_rows):
        members = [i for i, r in enumerate(rows) if r == row]
        own = coefficients[members]
        scales[members], distinct[row] = _nearest_direction(own, products)
    change = scales.unsqueeze(1) * distinct[list(rows)] - coefficients
    before = _squared_norm(coefficients, products).clamp(min=1e-30)
    error = (_squared_norm(change, products) / before).sqrt()
    if num_rows <= bank.num_templates:
        new = (distinct @ flat).view(-1, *templates.shape[1:])
        distinct = torch.eye(num_rows, dtype=torch.float64, device=flat.device)
    else:
        new = templates
    dtype = templates.dtype
    return TiedBank(
        rows, scales.to(dtype), distinct.to(dtype), new.to(dtype), similarity.float(), error.item()
    )


def _squared_norm(coefficients: Tensor, products: Tensor) -> Tensor:
    """Return the squared norm of the weights with these coefficients."""
    return ((coefficients @ products) * coefficients).sum().clamp(min=0)


def _nearest_direction(coefficients: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors and the coefficients of one layer whose multiples are closest to the given layers."""
    if len(coefficients) == 1:
        return coefficients.new_ones(1), coefficients[0]
    # the first left singular vector of the layers' weights
    vector = torch.linalg.eigh(coefficients @ products @ coefficients.t()).eigenvectors[:, -1]
    pivot = vector.abs().argmax()
    sign = torch.where(vector[0] < 0, -1.0, 1.0) * torch.sign(vector[pivot])
    factor = vector[pivot] * sign
    return vector / factor, factor * (vector @ coefficients)


def cluster(similarity: Tensor, threshold: float) -> tuple[int, ...]:
    """Group layers by complete linkage: every two layers of a group are similar enough.

    Args:
        similarity (Tensor): Similarity matrix, shape (L, L).
        threshold (float): Minimum similarity; 1 means ``1 - 1e-6``.

    Returns:
        tuple[int, ...]: Group of each layer. Groups are numbered in the order of their first layers.
    """
    threshold = min(threshold, 1 - 1e-6)
    values = similarity.tolist()
    groups = [[i] for i in range(len(values))]
    while True:
        pairs = [
            (min(values[i][j] for i in a for j in b), -x, -y)
            for x, a in enumerate(groups)
            for y, b in enumerate(groups[:x])
        ]
        best = max(pairs, default=(0.0, 0, 0))
        if best[0] < threshold:
            break
        x, y = -best[1], -best[2]
        groups[y] = sorted(groups[y] + groups.pop(x))
    groups.sort()
    return tuple(next(g for g, members in enumerate(groups) if i in members) for i in range(len(values)))
