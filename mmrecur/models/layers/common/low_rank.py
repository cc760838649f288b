"""Low-rank residuals: the difference between a layer's own weight and the weight that it shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_int


class LowRankResidual(nn.Module):
    r"""A matrix of low rank that one layer adds to a weight that several layers share.

    .. math::
        W_l = W + U_l V_l

    This relaxes the sharing, see Bae et al., *Relaxed Recursive Transformers*,
    https://arxiv.org/abs/2410.20672, where the layers are linear. The weight of a convolution counts as a
    matrix of shape (T, C * K * K). At full rank the layer can have any weight.

    U starts at zero, so that the layer starts with the shared weight.

    Args:
        shape (Sequence[int]): Shape of the weight: T output channels first.
        rank (int): Rank r of the residual. Values above the full rank, ``min(T, C * K * K)``, are reduced to
            it.

    Attributes:
        rank (int): Rank of the residual, after the reduction.
        up (Parameter): U, shape (T, r).
        down (Parameter): V, shape (r, C * K * K).

    Raises:
        ValueError: If ``rank`` is not a positive integer.

    Example:
        >>> import torch
        >>> residual = LowRankResidual((8, 4, 3, 3), rank=2)
        >>> weight = torch.rand(8, 4, 3, 3)
        >>> torch.equal(residual(weight), weight)
        True
    """

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        super().__init__()
        check_int('rank', rank, 1)
        rows, columns = shape[0], math.prod(shape[1:])
        self.rank = min(rank, rows, columns)
        self.up = nn.Parameter(torch.zeros(rows, self.rank))
        self.down = nn.Parameter(torch.empty(self.rank, columns))
        nn.init.normal_(self.down, std=columns**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum of the shared weight and the residual, in the shape of the weight."""
        return weight + (self.up @ self.down).view_as(weight)

    def extra_repr(self) -> str:
        return f'({self.up.size(0)}, {self.down.size(1)}), rank={self.rank}'


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the matrix of at most a given rank that is closest to a matrix.

    Args:
        matrix (Tensor): Shape (T, K).
        rank (int): Rank r, at most ``min(T, K)``.

    Returns:
        tuple[Tensor, Tensor]: ``up`` of shape (T, r) and ``down`` of shape (r, K). The rows of ``down`` are
        orthonormal, so that training can use directions in which the matrix is zero. At full rank the
        product is the matrix.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]
