"""Loss that keeps filter bases orthonormal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmrecur.checks import check_flag, check_weight
from mmrecur.models.layers.filter_basis.penalty import orthogonality_penalty
from mmrecur.registry import MODELS


class BasisGroup(NamedTuple):
    """Filters that should be orthonormal to each other, as the rows of matrices.

    Attributes:
        shared (list[Tensor]): Bases that several layers share, each of shape (R_i, K).
        unique (list[Tensor]): Filters that belong to single layers, each of shape (U_i, K).
    """

    shared: list[Tensor]
    unique: list[Tensor]


@MODELS.register_module()
class OrthogonalityLoss(nn.Module):
    r"""Mean squared deviation of filter bases from orthonormality.

    .. math::
        L = \lambda \frac{\sum_g \|B_g B_g^\top - I\|_F^2}{\sum_g R_g^2}

    where the R_g rows of B_g are the filters of group g. Kang and Kim, *Deeply Shared Filter Bases for
    Parameter-Efficient Convolutional Neural Networks*, NeurIPS 2021, https://arxiv.org/abs/2006.05066,
    equation 7. The equation has no denominator; the authors' code has.

    Args:
        loss_weight (float): Factor lambda. Defaults to 10.0, as in the authors' code.
        average (bool): Divide by the number of inner products. False gives equation 7 as printed. Defaults
            to True.
        with_unique (bool): Include the unique filters of each group, as the authors do on CIFAR-10. Defaults
            to False.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> loss = OrthogonalityLoss(loss_weight=10.0)
        >>> loss([BasisGroup(shared=[2 * torch.eye(3)], unique=[])])
        tensor(30.)
    """

    def __init__(self, loss_weight: float = 10.0, average: bool = True, with_unique: bool = False) -> None:
        super().__init__()
        check_weight('loss_weight', loss_weight)
        check_flag(average=average, with_unique=with_unique)
        self.loss_weight = loss_weight
        self.average = average
        self.with_unique = with_unique

    def forward(self, groups: Sequence[BasisGroup]) -> Tensor:
        """Compute the loss, in single precision or better.

        Args:
            groups (Sequence[BasisGroup]): At least one group.

        Returns:
            Tensor: Scalar.
        """
        total, entries = 0, 0
        for group in groups:
            matrices = [*group.shared, *(group.unique if self.with_unique else [])]
            matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
            precise = matrix if matrix.dtype == torch.float64 else matrix.float()
            total = total + orthogonality_penalty(precise)
            entries += len(matrix) ** 2
        return self.loss_weight * (total / entries if self.average else total)
