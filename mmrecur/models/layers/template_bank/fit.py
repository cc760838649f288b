"""Template banks that approximate given weights."""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest condition number of given coefficients. Beyond it, the templates would be large and would cancel
#: each other, which loses precision.
_MAX_CONDITION = 1e3


def fit_templates(
    weights: Tensor, num_templates: int, coefficients: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return the coefficients and templates that best approximate given weights.

    With k >= L, the fit is exact, with the given coefficients if possible. With k < L, it is the best
    approximation of rank k, from a singular value decomposition; the coefficients then have orthonormal
    columns.

    Args:
        weights (Tensor): Weights of the layers, shape (L, ...).
        num_templates (int): Number of templates k.
        coefficients (Tensor, optional): Coefficients to use if k >= L, shape (L, k). An identity replaces
            them if their condition number is 1000 or more. Defaults to None, the identity.

    Returns:
        tuple[Tensor, Tensor, float]: Coefficients A, shape (L, k); templates T, shape (k, ...); and the
        relative error ``||W - A T|| / ||W||``.
    """
    flat = weights.detach().double().flatten(1)
    num_layers = len(flat)
    if num_templates >= num_layers:
        chosen = torch.eye(num_layers, num_templates) if coefficients is None else coefficients.detach()
        chosen = chosen.to(flat)
        if not torch.linalg.cond(chosen) < _MAX_CONDITION:
            chosen = torch.eye(num_layers, num_templates).to(flat)
        templates = torch.linalg.pinv(chosen) @ flat
    else:
        # the left singular vectors of W are the eigenvectors of the small matrix W W^T
        vectors = torch.linalg.eigh(flat @ flat.t()).eigenvectors
        chosen = vectors[:, -num_templates:].flip(1)
        templates = chosen.t() @ flat
    chosen, templates = chosen.to(weights.dtype), templates.to(weights.dtype)
    error = (flat - chosen.double() @ templates.double()).norm() / flat.norm().clamp(min=1e-30)
    return chosen, templates.unflatten(1, weights.shape[1:]), error.item()
