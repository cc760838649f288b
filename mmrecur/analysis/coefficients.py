"""Coefficients of shared filter bases, their similarity, and the orthonormality of the bases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone


def backbone_of(model: nn.Module) -> SharedBasisBackbone:
    """Find the first backbone with shared bases in a model.

    Args:
        model (nn.Module): The backbone, or a classifier or detector with one.

    Returns:
        SharedBasisBackbone: The backbone.

    Raises:
        ValueError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, SharedBasisBackbone):
            return module
    raise ValueError(
        f'model of type {type(model).__name__} has no backbone with shared filter bases, allowed: e.g. '
        'mmrecur.ResNetShared'
    )


def coefficients(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the coefficients of the shared filters.

    Args:
        model (nn.Module): A backbone with factorised convolutions, or a model with one.

    Returns:
        dict[str, dict[str, Tensor]]: Coefficients by stage and by name of the convolution, one row per
        filter, shape (T, shared rank). Coefficients of unique filters are left out, since these filters
        span other spaces.

    Raises:
        ValueError: If no convolution is factorised. Backbones of bottlenecks share whole convolutions.
    """
    backbone = backbone_of(model)
    found: dict[str, dict[str, Tensor]] = {}
    for name in backbone.stages:
        for place, conv in getattr(backbone, name).factorized():
            shared = len(conv.basis.weight)
            rows = conv.coefficients.weight.detach().flatten(1)[:, -shared:]
            found.setdefault(name, {})[place] = rows
    if not found:
        raise ValueError(
            f'backbone of type {type(backbone).__name__} has no factorised convolutions, allowed: e.g. '
            'mmrecur.ResNetShared(depth=34)'
        )
    return found


def cosine_similarity(rows: Tensor) -> Tensor:
    """Return the absolute cosines of the angles between rows.

    Args:
        rows (Tensor): Shape (N, R).

    Returns:
        Tensor: Shape (N, N), from 0 to 1.

    Example:
        >>> cosine_similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [1., 0., 1.]])
    """
    unit = F.normalize(rows, dim=1)
    return (unit @ unit.T).abs()


def mean_similarity(similarity: Tensor) -> float:
    """Return the mean of a similarity matrix without its diagonal.

    Args:
        similarity (Tensor): Shape (N, N), N at least 2.

    Returns:
        float: The mean.
    """
    size = len(similarity)
    return ((similarity.sum() - similarity.diagonal().sum()) / (size * (size - 1))).item()


def gram_spectra(model: nn.Module) -> list[Tensor]:
    """Return the eigenvalues of ``B B^T`` for each group of shared filters B.

    All eigenvalues of an orthonormal basis are 1.

    Args:
        model (nn.Module): A backbone with shared bases, or a model with one.

    Returns:
        list[Tensor]: Eigenvalues of each group in descending order, shape (R,).
    """
    spectra = []
    for group in backbone_of(model).basis_groups():
        matrix = torch.cat(group.shared).detach().double()
        values = torch.linalg.svdvals(matrix).square()
        spectra.append(F.pad(values, (0, len(matrix) - len(values))))
    return spectra
