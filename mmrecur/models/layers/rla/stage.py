"""Stages of residual blocks with a recurrent path beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.rla.block import RLABottleneck, RLAInvertedResidual, Tap
from mmrecur.models.layers.rla.cell import RecurrentCell, State, downsample_hidden, hidden_state
from mmrecur.models.layers.rla.other_cells import UnsharedCells
from mmrecur.models.layers.rla.preact import PreActBlock


class RLAStage(Stage):
    """Residual blocks, named ``0``, ``1``, ..., and the recurrent cell ``rla`` beside them.

    Args:
        blocks (Sequence[nn.Module]): :class:`RLABottleneck`, :class:`RLAInvertedResidual` or
            :class:`PreActBlock`.
        cell (RecurrentCell or UnsharedCells, optional): The cell, with one update for each block. If nothing
            reads the state after the stage, the last block has none. None for a plain stage.
        source (str): Map of the blocks that the cell aggregates, a ``source`` of :class:`Tap`. Defaults to
            'residual'.
        with_cp (bool): Recompute each block and its update in the backward pass. Defaults to False.
        before_last (nn.Module, optional): Plugin on the input of the last block, such as a non-local layer.
            Defaults to None.
    """

    def __init__(
        self,
        blocks: Sequence[RLABottleneck | RLAInvertedResidual | PreActBlock],
        cell: RecurrentCell | UnsharedCells | None = None,
        source: str = 'residual',
        with_cp: bool = False,
        before_last: nn.Module | None = None,
    ) -> None:
        super().__init__(blocks, with_cp)
        self.rla = cell
        self.before_last = before_last
        self.num_updates = 0 if cell is None else cell.num_steps
        self.source = source

    def block_parts(self) -> list[list[nn.Module]]:
        """See :meth:`BlockSequence.block_parts`. The cell's parts of one update belong to that block."""
        parts = super().block_parts()
        for index in range(self.num_updates):
            parts[index] += self.rla.step_parts(index)
        if self.before_last is not None:
            parts[-1].append(self.before_last)
        return parts

    def step(
        self, x: Tensor, state: State, index: int, recurrent_conv: nn.Module | None
    ) -> tuple[Tensor, State]:
        """Run block ``index`` and, if there is one, the update after it."""
        block = getattr(self, str(index))
        if self.before_last is not None and index == self.num_blocks - 1:
            x = self.before_last(x)
        h = hidden_state(state)
        if index >= self.num_updates:
            return block(x, h), state
        tap = Tap(self.source, self.rla.readout(index))
        x = block(x, h, tap)
        state = self.rla.update(downsample_hidden(state, block.stride), tap.value, index)
        return x, state if recurrent_conv is None else recurrent_conv(state)

    def forward(
        self, x: Tensor, state: State, recurrent_conv: nn.Module | None = None
    ) -> tuple[Tensor, State]:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            state (Tensor or tuple[Tensor, Tensor], optional): State, shape (N, k, H, W), or two such maps
                of an LSTM. None stands for zeros.
            recurrent_conv (nn.Module, optional): W_r, where several stages share it and the cell has none
                of its own. Defaults to None.

        Returns:
            tuple[Tensor, Tensor]: The output and the state after the last update.
        """
        for index in range(self.num_blocks):
            x, state = run_step(self, self.with_cp, self.step, x, state, index, recurrent_conv)
        return x, state

    def switch_to_deploy(self) -> None:
        """Fuse the norms, and collapse W_o with the last convolution of the blocks where that is cheaper."""
        for block in self.blocks:
            block.switch_to_deploy()
        if self.rla is None:
            return
        # W_o reads W_3 a + b_3 directly where a has fewer channels
        lasts = [block.residual_conv() for block in self.blocks]
        collapses = self.source == 'residual' and all(
            conv is not None and conv.in_channels < conv.out_channels for conv in lasts
        )
        fused = self.rla.fused(lasts if collapses else None)
        if fused is not None:
            self.rla = fused
            self.source = 'inner' if collapses else self.source


def append_hidden(x: Tensor, state: State, norm: nn.Module | None) -> Tensor:
    """Append the state to the output of a network, for classifiers.

    Args:
        x (Tensor): Output, shape (N, C, H, W).
        state (Tensor or tuple[Tensor, Tensor]): State after the last block, shape (N, k, H, W).
        norm (nn.Module, optional): Norm of h, which a ReLU follows. None appends h itself.

    Returns:
        Tensor: ``cat(x, relu(norm(h)))``, shape (N, C + k, H, W).
    """
    h = hidden_state(state)
    return torch.cat([x, h if norm is None else torch.relu(norm(h))], dim=1)
