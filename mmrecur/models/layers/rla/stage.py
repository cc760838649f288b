"""Stages of residual networks with the recurrent path beside them, and what describes that path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.parallel import is_sharded
from mmrecur.models.layers.common.preact import PreActBlock
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.common.tap import Tap
from mmrecur.models.layers.rla.cell import RLA_VARIANTS, RecurrentCell, State, downsample_hidden, hidden_state
from mmrecur.models.layers.rla.other_cells import UnsharedCells, check_cell, make_rla_cell


class RLAStage(Stage):
    """A stage: residual blocks, named ``0``, ``1``, ..., and the recurrent cell ``rla`` beside them.

    Args:
        blocks (Sequence[Bottleneck or PreActBlock]): The stage's blocks.
        cell (RecurrentCell or UnsharedCells, optional): Its cell, with an update for each block, or for
            each but the last if nothing reads the state after the stage; None for a plain stage.
        source (str): What the cell aggregates, see :class:`Bottleneck`. Defaults to 'output'.
        with_cp (bool): Recompute each block with its update in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        blocks: Sequence[Bottleneck | PreActBlock],
        cell: RecurrentCell | UnsharedCells | None,
        source: str = 'output',
        with_cp: bool = False,
    ) -> None:
        super().__init__(blocks)
        self.rla = cell
        #: A plugin on the input of the last block, such as a non-local one.
        self.before_last: nn.Module | None = None
        self.num_updates = 0 if cell is None else cell.num_steps
        self.source = source
        self.with_cp = with_cp

    def block_parts(self) -> list[list[nn.Module]]:
        """See :meth:`BlockSequence.block_parts`; what the cell has for one update goes with its block."""
        parts = super().block_parts()
        for index in range(self.num_updates):
            parts[index] += self.rla.step_parts(index)
        return parts

    def step(self, x: Tensor, state: State, index: int) -> tuple[Tensor, State]:
        """Run one block and, if there is one, the update after it."""
        block = getattr(self, str(index))
        if self.before_last is not None and index == self.num_blocks - 1:
            x = self.before_last(x)
        reads = block.conv1_hidden is not None
        h = hidden_state(state) if reads else None
        if index >= self.num_updates:
            return block(x, h), state
        tap = Tap(self.source, self.rla.readout(index))
        x = block(x, h, tap)
        new = tap.value
        if state is None and reads and self.training and not is_sharded(block.conv1_hidden.weight):
            # DistributedDataParallel waits for the gradient of every parameter: one of zeros here. FSDP2 does
            # not, and where blocks are sharded this weight is gathered in the block only.
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
            x, state = run_step(self, self.with_cp, self.step, x, state, index)
        return x, state

    def switch_to_deploy(self) -> None:
        """Fold the norms, collapse W_o with the last convolution of the blocks it reads."""
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


@dataclass(frozen=True)
class RLASettings:
    """The recurrent path of a network, as the arguments of its backbone describe it.

    Attributes:
        rla_channels (int): Channels k of the state, 0 for a network without it.
        variant (str): What is aggregated, and where it joins the state: ``'v1'`` to ``'v6'``.
        cell (str): Recurrent unit: ``'conv'``, ``'lstm'`` or ``'gru'``.
        shared (bool): Whether the blocks of a stage share the cell's convolutions.
        exchange (bool): Whether blocks read the state.
        post_act (bool): Whether the recurrent convolution comes before norm and tanh.
        with_hidden (bool): Whether the network returns the state.

    Raises:
        TypeError, ValueError: If an argument is wrong or does not go with another.
    """

    rla_channels: int
    variant: str = 'v1'
    cell: str = 'conv'
    shared: bool = True
    exchange: bool = True
    post_act: bool = False
    with_hidden: bool = False

    def __post_init__(self) -> None:
        check_int('rla_channels', self.rla_channels, 0)
        check_choice('variant', self.variant, RLA_VARIANTS)
        check_flag(shared=self.shared, exchange=self.exchange, with_hidden=self.with_hidden)
        check_cell(self.cell, self.post_act, add_first=RLA_VARIANTS[self.variant][1])
        if self.rla_channels == 0:
            for field in fields(self)[1:]:
                if (value := getattr(self, field.name)) != field.default:
                    raise ValueError(
                        f'{field.name}={value!r} with rla_channels=0, allowed: {field.default!r}: '
                        'the plain network has no recurrent path'
                    )
        if not self.exchange and not self.with_hidden:
            raise ValueError(
                'exchange=False with with_hidden=False, allowed: with_hidden=True, or rla_channels=0: '
                'nothing would read the state'
            )

    @property
    def block_channels(self) -> int:
        """int: Channels of the state that blocks read."""
        return self.rla_channels if self.exchange else 0

    def make_stage(
        self,
        blocks: Sequence[Bottleneck | PreActBlock],
        channels: int,
        is_last: bool,
        norm_layer: NormLayer,
        with_cp: bool,
    ) -> RLAStage:
        """Build a stage.

        Args:
            blocks (Sequence[Bottleneck or PreActBlock]): Its blocks.
            channels (int): Channels of what the cell aggregates.
            is_last (bool): Whether no stage follows.
            norm_layer (Callable): Builds a norm from a channel count.
            with_cp (bool): Recompute activations in the backward pass.

        Returns:
            RLAStage: The stage.
        """
        # what nothing reads is not built: its parameters would never get a gradient
        num_steps = len(blocks) - 1 if is_last and not self.with_hidden else len(blocks)
        if self.rla_channels == 0 or num_steps == 0:
            return RLAStage(blocks, None, with_cp=with_cp)
        source, add_first = RLA_VARIANTS[self.variant]
        cell = make_rla_cell(
            channels,
            self.rla_channels,
            num_steps,
            cell=self.cell,
            shared=self.shared,
            post_act=self.post_act,
            add_first=add_first,
            norm_layer=norm_layer,
        )
        return RLAStage(blocks, cell, source, with_cp)

    def make_hidden_norm(self, norm_layer: NormLayer) -> nn.Module | None:
        """Build the norm of the state that is returned; None where h is an activation already."""
        normed = self.with_hidden and self.cell == 'conv' and not self.post_act
        return norm_layer(self.rla_channels) if normed else None


def append_hidden(x: Tensor, state: State, norm: nn.Module | None) -> Tensor:
    """Concatenate what classifiers read.

    Args:
        x (Tensor): The network's output, shape (N, C, H, W).
        state (Tensor or tuple[Tensor, Tensor]): State after the last block, shape (N, k, H, W).
        norm (nn.Module, optional): Norm of h, followed by a ReLU; None for h as it is.

    Returns:
        Tensor: Shape (N, C + k, H, W).
    """
    h = hidden_state(state)
    return torch.cat([x, h if norm is None else torch.relu(norm(h))], dim=1)
