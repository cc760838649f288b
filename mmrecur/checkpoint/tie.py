"""Folding: layers that do the same become one layer that runs several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.layers.template_bank import TemplateBank, check_banks, layer_similarity, template_banks


@dataclass(frozen=True)
class FoldedBank:
    """What became of one bank.

    Attributes:
        rows (tuple[int, ...]): Of each layer the distinct layer that it is now.
        scales (Tensor): Factor of each layer, negative where the sign is flipped, shape (L,).
        coefficients (Tensor): Coefficients of the distinct layers, shape (R, k).
        templates (Tensor): Their templates, in the shape of :class:`TemplateBank`'s.
        similarity (Tensor): Layer similarity matrix before, shape (L, L).
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
        """bool: Whether any layers became one."""
        return len(set(self.rows)) < len(self.rows)


@dataclass(frozen=True)
class TiedLayers:
    """What :func:`fold` did.

    Attributes:
        banks (dict[str, FoldedBank]): By the bank's name in the model, tied or not.
        parameters (tuple[int, int]): Of the model, before and after.
    """

    banks: dict[str, FoldedBank]
    parameters: tuple[int, int]

    def arguments(self, prefix: str = '') -> dict[str, Any]:
        """The ``tied_layers`` argument of the model that the folded state dict is for.

        Args:
            prefix (str): What the names of the banks start with in the model, ``'backbone.'``.
                Defaults to nothing.

        Returns:
            dict: Rows by the parts of the bank's name, ``dict(layer2=dict(bank=[0, 1, 0, 1]))``.
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
        """Tie the layers of a model in place, also of one without a ``tied_layers`` argument.

        Args:
            model (nn.Module): The model that was folded, or one built like it.

        Returns:
            nn.Module: The model, with the folded weights in its banks.
        """
        for name, bank in self.banks.items():
            if bank.is_tied:
                tied = model.get_submodule(name)
                tied.tie(bank.rows, bank.scales, bank.coefficients, bank.templates)
        return model


def fold(
    state_dict: Mapping[str, Tensor], model: nn.Module, threshold: float
) -> tuple[dict[str, Tensor], TiedLayers]:
    """Tie layers whose similarity reaches a threshold, Savarese and Maire 2019, Sections 3.2 and 4.3.

    Layers become one if each two of them are that similar. The new layer is the one whose multiples come
    nearest to the old weights; each old layer keeps its factor, which is negative where the signs differ,
    and its norm. So layers of similarity 1 compute what they did. Where the distinct layers are no more
    than the templates, they are the new templates.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of the model.
        model (nn.Module): A model with template banks. It is not changed.
        threshold (float): Least similarity, above 0, at most 1. Similarities are rounded, so 1 stands for
            ``1 - 1e-6``.

    Returns:
        tuple[dict[str, Tensor], TiedLayers]: A state dict for the model built with
        ``tied_layers=result.arguments()`` (or for ``result.apply(model)``), and what was tied.

    Raises:
        ValueError: If the threshold is out of range, the model has no bank, or the state dict lacks the
            model's banks or has others.

    Example:
        >>> from mmrecur.models.backbones import SWRN
        >>> model = SWRN(depth=16, width=2, num_templates=1)
        >>> state, folding = fold(model.state_dict(), model, 0.9)  # one template: all do the same
        >>> folding.arguments()['layer2']
        {'bank': [0, 0]}
        >>> smaller = SWRN(16, 2, num_templates=1, tied_layers=folding.arguments())
        >>> smaller.load_state_dict(state)
        <All keys matched successfully>
    """
    if not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise ValueError(f'threshold={threshold!r}, allowed: a number above 0, at most 1')
    banks = template_banks(model)
    if not banks:
        raise ValueError('the model has no template bank, allowed: one that shares weights, not yet deployed')
    check_banks(state_dict, banks)
    folded = {name: _fold_bank(state_dict, name, bank, threshold) for name, bank in banks.items()}
    state = {key: value.detach().clone() for key, value in state_dict.items()}
    for name, bank in folded.items():
        if bank.is_tied:
            state[f'{name}.row_scales'] = bank.scales.clone()
            state[f'{name}.coefficients'] = bank.coefficients.clone()
            state[f'{name}.templates'] = bank.templates.clone()
    before = sum(p.numel() for p in model.parameters())
    change = sum(_size(bank, banks[name]) for name, bank in folded.items() if bank.is_tied)
    return state, TiedLayers(folded, (before, before + change))


def _size(folded: FoldedBank, bank: TemplateBank) -> int:
    """Change of the number of parameters."""
    new = (folded.scales, folded.coefficients, folded.templates)
    return sum(t.numel() for t in new) - sum(p.numel() for p in bank.parameters())


def _fold_bank(
    state_dict: Mapping[str, Tensor], name: str, bank: TemplateBank, threshold: float
) -> FoldedBank:
    templates = state_dict[f'{name}.templates']
    coefficients = state_dict[f'{name}.coefficients'].double()
    if bank.rows is not None:
        scales = state_dict[f'{name}.row_scales'].double()
        coefficients = scales.unsqueeze(1) * coefficients[list(bank.rows)]
    flat = templates.double().reshape(bank.num_templates, -1)
    similarity = layer_similarity(coefficients)
    if bank.rows is None:
        rows = cluster(similarity, threshold)
    else:  # what is tied stays so, whatever factor a layer has learned, be it 0
        merged = cluster(layer_similarity(state_dict[f'{name}.coefficients'].double()), threshold)
        rows = tuple(merged[row] for row in bank.rows)
    num_rows = max(rows) + 1
    scales = torch.ones(len(rows), dtype=torch.float64, device=flat.device)
    distinct = coefficients.new_zeros(num_rows, bank.num_templates)
    products = flat @ flat.t()  # of templates: all that the weights' distances depend on
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
    return FoldedBank(
        rows, scales.to(dtype), distinct.to(dtype), new.to(dtype), similarity.float(), error.item()
    )


def _squared_norm(coefficients: Tensor, products: Tensor) -> Tensor:
    """Squared norm of the weights that coefficients make up."""
    return ((coefficients @ products) * coefficients).sum().clamp(min=0)


def _nearest_direction(coefficients: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and one layer whose multiples are nearest to the weights of some layers."""
    if len(coefficients) == 1:
        return coefficients.new_ones(1), coefficients[0]
    # the first left singular vector of the layers' weights
    vector = torch.linalg.eigh(coefficients @ products @ coefficients.t()).eigenvectors[:, -1]
    pivot = vector.abs().argmax()
    sign = torch.where(vector[0] < 0, -1.0, 1.0) * torch.sign(vector[pivot])
    factor = vector[pivot] * sign
    return vector / factor, factor * (vector @ coefficients)


def cluster(similarity: Tensor, threshold: float) -> tuple[int, ...]:
    """Group layers so that each two in a group are similar enough, merging the most similar first.

    Args:
        similarity (Tensor): Shape (L, L).
        threshold (float): Least similarity; 1 stands for ``1 - 1e-6``.

    Returns:
        tuple[int, ...]: Group of each layer, numbered by their first layers.
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
