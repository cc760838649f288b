"""Norms of a block in a loop: one for each iteration (LVBN and I-LVBN)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.checks import check_int
from mmrecur.models.layers.loop.masked_norm import masked_batch_norm


@dataclass
class LoopPosition:
    """Current position in a loop, shared by the loop and all norms of its block.

    Attributes:
        iteration (int): Index of the current iteration.
        passed (Tensor, optional): Weight of each sample in the batch statistics, 1 or 0, shape (N,). The
            loop sets it in training only. None counts every sample.
    """

    iteration: int = 0
    passed: Tensor | None = None


class LoopNorm(nn.ModuleList):
    """Loopy variable batch norm (LVBN): separate parameters and statistics for each iteration of a loop.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019.

    ``masked=True`` gives the improved form (I-LVBN), which differs in training: only the samples that the
    gate let pass count in the batch statistics and in the running statistics, see
    :func:`masked_batch_norm`. All samples are normalised.

    Args:
        norm (nn.Module): Norm of the first iteration. The other iterations start with copies of it.
        num_iterations (int): Maximum number of iterations of the loop.
        position (LoopPosition): Position in the loop, which the loop updates.
        masked (bool): Whether to use I-LVBN. Has no effect on norms without batch statistics, such as group
            norms. Defaults to False.

    Example:
        >>> import torch
        >>> position = LoopPosition()
        >>> norm = LoopNorm(nn.BatchNorm2d(8), num_iterations=3, position=position, masked=True)
        >>> position.iteration, position.passed = 2, torch.tensor([1.0, 0.0])
        >>> norm(torch.rand(2, 8, 4, 4)).shape  # with the statistics of the first sample
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self, norm: nn.Module, num_iterations: int, position: LoopPosition, masked: bool = False
    ) -> None:
        check_int('num_iterations', num_iterations, 1)
        super().__init__([norm, *(copy.deepcopy(norm) for _ in range(num_iterations - 1))])
        self.position = position
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map with the norm of the current iteration.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        norm = self[self.position.iteration]
        passed = self.position.passed
        if self.masked and passed is not None and isinstance(norm, _BatchNorm) and norm.training:
            return masked_batch_norm(x, norm, passed)
        return norm(x)
