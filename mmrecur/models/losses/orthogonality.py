"""The orthogonality of filter bases as an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_flag, check_weight
from mmrecur.models.layers.filter_basis.basis import orthogonality_penalty
from mmrecur.registry import MODELS


class BasisGroup(NamedTuple):
    """Filters that should be orthonormal to each other, as rows.

    Attributes:
        shared (list[Tensor]): Matrices of shape (R_i, K): the bases that blocks share.
        unique (list[Tensor]): Matrices of shape (U_i, K): filters that blocks add to them.
    """

    shared: list[Tensor]
    unique: list[Tensor]


@MODELS.register_module()
class OrthogonalityLoss(nn.Module):
    r"""Penalty that keeps filter bases orthonormal.

    .. math::
        L = \lambda \frac{\sum_g \|B_g B_g^\top - I\|_F^2}{\sum_g R_g^2}

    with the filters of group g as the R_g rows of B_g. Kang and Kim, *Deeply Shared Filter Bases for
    Parameter-Efficient Convolutional Neural Networks*, NeurIPS 2021, equation 7, where the sum is not
    divided; the authors' code divides it.

    Args:
        loss_weight (float): The factor lambda. Defaults to 10.0, as in the authors' code.
        average (bool): Divide by the number of inner products; False is equation 7 as printed. Defaults
            to True.
        with_unique (bool): Put the filters that a block adds to a shared basis into its group too, as the
            authors do on CIFAR-10. Defaults to False.

    Raises:
        ValueError: If ``loss_weight`` is no number of at least 0.

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
        """Compute the penalty.

        Args:
            groups (Sequence[BasisGroup]): One or more groups.

        Returns:
            Tensor: A scalar.
        """
        total, entries = 0, 0
        for group in groups:
            matrices = [*group.shared, *(group.unique if self.with_unique else [])]
            matrix = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
            single = matrix if matrix.dtype == torch.float64 else matrix.float()
            total = total + orthogonality_penalty(single)
            entries += len(matrix) ** 2
        return self.loss_weight * (total / entries if self.average else total)
