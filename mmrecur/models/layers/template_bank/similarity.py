"""Similarity of the layers of a whole model, from the coefficients of its template banks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrecur.models.layers.template_bank.bank import check_banks, template_banks
from mmrecur.models.layers.template_bank.coefficients import layer_similarity


@torch.no_grad()
def similarity_matrices(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the layer similarity matrices of a model, Savarese and Maire 2019, Section 3.2.

    Args:
        model (nn.Module): A network with template banks.
        state_dict (Mapping[str, Tensor], optional): Weights to use instead of those of the model.
            Defaults to None.

    Returns:
        dict[str, Tensor]: Matrices by bank name, shape (L, L), on the CPU.

    Raises:
        ValueError: If the model has no bank, or the state dict does not fit its banks.
    """
    banks = template_banks(model)
    if not banks:
        raise ValueError(
            'the model has no template bank, allowed: one that shares weights, not in its inference form'
        )
    if state_dict is not None:
        check_banks(state_dict, banks)
    matrices = {}
    for name, bank in banks.items():
        if state_dict is None:
            coefficients = bank.layer_coefficients()
        else:
            coefficients = state_dict[f'{name}.coefficients']
            if bank.rows is not None:
                coefficients = state_dict[f'{name}.row_scales'].unsqueeze(1) * coefficients[list(bank.rows)]
        matrices[name] = layer_similarity(coefficients.float()).cpu()
    return matrices


def mean_similarity(matrix: Tensor) -> float:
    """Return the mean similarity of two different layers.

    Args:
        matrix (Tensor): Shape (L, L).

    Returns:
        float: From 0 to 1; 0 for a single layer.
    """
    count = len(matrix)
    if count == 1:
        return 0.0
    return ((matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))).item()
