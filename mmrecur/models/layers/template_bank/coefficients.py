"""Coefficients of template banks: initial values and the similarity of layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_choice

COEFFICIENT_INITS = ('orthogonal', 'identity', 'sparse')


def initial_coefficients(num_layers: int, num_templates: int, kind: str) -> Tensor:
    """Return initial coefficients, Savarese and Maire 2019, Appendix B.

    Args:
        num_layers (int): Number of layers L.
        num_templates (int): Number of templates k.
        kind (str): ``'orthogonal'``: orthonormal rows, or orthonormal columns if k < L. ``'identity'``: layer
            i uses template i alone. ``'sparse'``: normally distributed with half of each row set to zero;
            rows have an expected squared norm of 1.

    Returns:
        Tensor: Shape (L, k).

    Raises:
        ValueError: If ``kind`` is unknown, or it is ``'identity'`` and L and k differ.
    """
    check_choice('coefficient_init', kind, COEFFICIENT_INITS)
    if kind == 'identity':
        if num_layers != num_templates:
            raise ValueError(
                f"coefficient_init='identity' with {num_layers} layers and {num_templates} templates, "
                "allowed: as many templates as layers, or 'orthogonal', 'sparse'"
            )
        return torch.eye(num_layers)
    coefficients = torch.empty(num_layers, num_templates)
    if kind == 'orthogonal':
        return nn.init.orthogonal_(coefficients)
    kept = num_templates - num_templates // 2
    nn.init.normal_(coefficients, std=1 / math.sqrt(kept))
    order = torch.rand(num_layers, num_templates).argsort(dim=1)
    return coefficients * (order < kept)


def layer_similarity(coefficients: Tensor) -> Tensor:
    """Return the layer similarity matrix, ``S_ij = |<a_i, a_j>| / (|a_i| |a_j|)``.

    Savarese and Maire 2019, Section 3.2.

    Args:
        coefficients (Tensor): One row per layer, shape (L, k).

    Returns:
        Tensor: Shape (L, L), values from 0 to 1.
    """
    directions = F.normalize(coefficients, dim=1)
    return (directions @ directions.t()).abs()
