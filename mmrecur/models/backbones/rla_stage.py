"""A stage of a residual network with the recurrent path beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.activation_checkpoint import checkpoint_step
from ..layers.fuse import is_foldable
from ..layers.residual import Bottleneck
from ..layers.rla import RecurrentCell, State, downsample_hidden, hidden_state
from ..layers.rla_cells import UnsharedCells


class RLAStage(nn.Module):
    """A stage: residual blocks, named ``0``, ``1``, ..., and the recurrent cell ``rla`` beside them.

    Args:
        blocks (Sequence[Bottleneck]): The stage's blocks.
        cell (RecurrentCell or UnsharedCells, optional): Its cell, with an update for each block, or for
            each but the last if nothing reads the state after the stage; None for a plain stage.
        source (str): What the cell aggregates, see :class:`Bottleneck`. Defaults to 'output'.
        with_cp (bool): Recompute each block with its update in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        blocks: Sequence[Bottleneck],
        cell: RecurrentCell | UnsharedCells | None,
        source: str = 'output',
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.num_blocks = len(blocks)
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)
        self.rla = cell
        self.num_updates = 0 if cell is None else cell.num_steps
        self.source = source
        self.with_cp = with_cp

    @property
    def blocks(self) -> list[Bottleneck]:
        """list[Bottleneck]: The blocks in order."""
        return [getattr(self, str(i)) for i in range(self.num_blocks)]

    def step(self, x: Tensor, state: State, index: int) -> tuple[Tensor, State]:
        """Run one block and, if there is one, the update after it."""
        block = getattr(self, str(index))
        reads = block.conv1_hidden is not None
        h = hidden_state(state) if reads else None
        if index >= self.num_updates:
            return block(x, h)[0], state
        x, new = block(x, h, self.source, self.rla.readout(index))
        if state is None and reads and self.training:
            # DistributedDataParallel waits for the gradient of every parameter: one of zeros here
            new = new + 0 * block.conv1_hidden.weight.sum()
        return x, self.rla.update(downsample_hidden(state, block.stride), new, index)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            state (Tensor or tuple[Tensor, Tensor], optional): State, shape (N, k, H, W), an LSTM's two
                of them; None for zeros.

        Returns:
            tuple[Tensor, Tensor]: The stage's output and the state after its last update.
        """
        for index in range(self.num_blocks):
            if self.with_cp and torch.is_grad_enabled() and self.training:
                x, state = checkpoint_step(self, self.step, x, state, index)
            else:
                x, state = self.step(x, state, index)
        return x, state

    def switch_to_deploy(self) -> None:
        """Fold the norms, collapse W_o with the last convolution of the blocks it reads."""
        # W_o reads W_3 a + b_3 directly only if no attention is in between and the norm folds
        collapses = self.source == 'residual' and all(
            block.attention is None
            and is_foldable(block.bn3)
            and block.conv3.in_channels < block.conv3.out_channels
            for block in self.blocks
        )
        for block in self.blocks:
            block.switch_to_deploy()
        if self.rla is None:
            return
        fused = self.rla.fused([block.conv3 for block in self.blocks] if collapses else None)
        if fused is not None:
            self.rla = fused
            self.source = 'inner' if collapses else self.source
