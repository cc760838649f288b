"""Templates and coefficients that make up given weights."""

from __future__ import annotations

import torch
from torch import Tensor

#: Condition number of coefficients from which on they are not used.
_WORST_CONDITION = 1e3


def fit_templates(
    weights: Tensor, num_templates: int, coefficients: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Coefficients and templates that come nearest to given weights.

    With as many templates as layers the weights are met exactly, with the coefficients given. With fewer,
    the result is the best approximation of that rank, from a singular value decomposition; its
    coefficients have orthonormal columns.

    Args:
        weights (Tensor): Weights of the layers, shape (L, ...).
        num_templates (int): Templates k.
        coefficients (Tensor, optional): Shape (L, k), used if ``k >= L`` and they are well independent
            (condition number below 1000), else an identity. Defaults to None: the identity.

    Returns:
        tuple[Tensor, Tensor, float]: Coefficients, shape (L, k), templates, shape (k, ...), and the
        relative error ``||W - A T|| / ||W||``.
    """
    flat = weights.detach().double().flatten(1)
    num_layers = len(flat)
    if num_templates >= num_layers:
        chosen = torch.eye(num_layers, num_templates) if coefficients is None else coefficients.detach()
        chosen = chosen.to(flat)
        # large templates that cancel would lose in single precision what they make up
        if not torch.linalg.cond(chosen) < _WORST_CONDITION:
            chosen = torch.eye(num_layers, num_templates).to(flat)
        templates = torch.linalg.pinv(chosen) @ flat
    else:
        # the left singular vectors are the eigenvectors of the small matrix W W^T
        vectors = torch.linalg.eigh(flat @ flat.t()).eigenvectors
        chosen = vectors[:, -num_templates:].flip(1)
        templates = chosen.t() @ flat
    chosen, templates = chosen.to(weights.dtype), templates.to(weights.dtype)
    error = (flat - chosen.double() @ templates.double()).norm() / flat.norm().clamp(min=1e-30)
    return chosen, templates.unflatten(1, weights.shape[1:]), error.item()
