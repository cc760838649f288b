"""What layers make of a shared filter basis: their coefficients, and the basis itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone


def backbone_of(model: nn.Module) -> SharedBasisBackbone:
    """The backbone with shared bases in a model.

    Args:
        model (nn.Module): The backbone, or a classifier or detector with one.

    Returns:
        SharedBasisBackbone: The first one.

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
    """Coefficients of the shared filters.

    Args:
        model (nn.Module): A backbone with factorised convolutions, or a model with one.

    Returns:
        dict[str, dict[str, Tensor]]: For each stage, by the convolution's name in it, a row for each
        filter, shape (T, shared rank): those of unique filters, which span other spaces, are left out.

    Raises:
        ValueError: If no convolution is factorised. Bottlenecks share whole convolutions.
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
    """Absolute cosines of the angles between rows.

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
    """Mean of a matrix of similarities without its diagonal.

    Args:
        similarity (Tensor): Shape (N, N), N at least 2.

    Returns:
        float: The mean.
    """
    size = len(similarity)
    return ((similarity.sum() - similarity.diagonal().sum()) / (size * (size - 1))).item()


def gram_spectra(model: nn.Module) -> list[Tensor]:
    """Eigenvalues of ``B B^T`` for the shared filters B of each group: all 1 for an orthonormal basis.

    Args:
        model (nn.Module): A backbone with shared bases, or a model with one.

    Returns:
        list[Tensor]: For each group its eigenvalues in descending order, shape (R,).
    """
    spectra = []
    for group in backbone_of(model).basis_groups():
        matrix = torch.cat(group.shared).detach().double()
        values = torch.linalg.svdvals(matrix).square()
        spectra.append(F.pad(values, (0, len(matrix) - len(values))))
    return spectra
