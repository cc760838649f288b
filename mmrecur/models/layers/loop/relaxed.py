"""Convolutions of a block in a loop: one weight for all iterations and a low-rank residual for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.low_rank import LowRankResidual
from mmrecur.models.layers.loop.norm import LoopPosition


class RelaxedConv2d(nn.Conv2d):
    """A convolution that adds a low-rank residual to its weight in each iteration of a loop.

    The residuals start at zero. The weight keeps its name in the state dict; the residuals are
    ``relaxations.0.up``, ``relaxations.0.down``, ...

    Args:
        conv (nn.Conv2d): The convolution to relax, with one group. Its parameters become those of this
            layer.
        num_iterations (int): Maximum number of iterations of the loop.
        rank (int): Rank of each residual, see :class:`LowRankResidual`.
        position (LoopPosition): Position in the loop, which the loop updates.
    """

    def __init__(self, conv: nn.Conv2d, num_iterations: int, rank: int, position: LoopPosition) -> None:
        super().__init__(**_arguments(conv), device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        shape = self.weight.shape
        self.relaxations = nn.ModuleList(LowRankResidual(shape, rank) for _ in range(num_iterations))
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map with the weight of the current iteration.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        weight = self.relaxations[self.position.iteration](self.weight)
        return self._conv_forward(x, weight, self.bias)

    @torch.no_grad()
    def materialise(self, iteration: int) -> nn.Conv2d:
        """Return a plain convolution with copies of the weight of an iteration and of the bias."""
        weight = self.relaxations[iteration](self.weight)
        conv = nn.Conv2d(**_arguments(self), device=weight.device, dtype=weight.dtype)
        conv.weight.copy_(weight)
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv


def _arguments(conv: nn.Conv2d) -> dict[str, Any]:
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
    arguments = {name: getattr(conv, name) for name in (*names, 'padding_mode')}
    return dict(arguments, bias=conv.bias is not None)
