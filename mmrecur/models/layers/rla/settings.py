"""The options of the recurrent path that the RLA-ResNets have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.rla.block import RLABottleneck
from mmrecur.models.layers.rla.cell import RLA_VARIANTS
from mmrecur.models.layers.rla.other_cells import CELL_SHARES, check_cell, make_rla_cell
from mmrecur.models.layers.rla.preact import PreActBlock
from mmrecur.models.layers.rla.stage import RLAStage


@dataclass(frozen=True)
class RLASettings:
    """Checked options of the recurrent path of a network.

    Attributes:
        rla_channels (int): Channels k of the state, 0 for a plain network.
        variant (str): Map that is aggregated and place where it joins the state, ``'v1'`` to ``'v6'``.
        cell (str): Recurrent unit: ``'conv'``, ``'lstm'`` or ``'gru'``.
        share (str, optional): ``'stage'``: the blocks of a stage share the convolutions of the cell. None:
            each block has its own.
        exchange (bool): Whether blocks read the state.
        post_act (bool): Whether the recurrent convolution comes before norm and tanh.
        with_hidden (bool): Whether the network returns the state.

    Raises:
        TypeError, ValueError: If an option is wrong or contradicts another one.
    """

    rla_channels: int
    variant: str = 'v1'
    cell: str = 'conv'
    share: str | None = 'stage'
    exchange: bool = True
    post_act: bool = False
    with_hidden: bool = False

    def __post_init__(self) -> None:
        check_int('rla_channels', self.rla_channels, 0)
        check_choice('variant', self.variant, RLA_VARIANTS)
        check_choice('share', self.share, CELL_SHARES)
        check_flag(exchange=self.exchange, with_hidden=self.with_hidden)
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
        blocks: Sequence[RLABottleneck | PreActBlock],
        channels: int,
        is_last: bool,
        norm_layer: NormLayer,
        with_cp: bool,
        before_last: nn.Module | None = None,
    ) -> RLAStage:
        """Build a stage.

        Args:
            blocks (Sequence[nn.Module]): The blocks.
            channels (int): Channels of the map that the cell aggregates.
            is_last (bool): Whether no stage follows.
            norm_layer (Callable): Builds a norm from a number of channels.
            with_cp (bool): Recompute activations in the backward pass.
            before_last (nn.Module, optional): See :class:`RLAStage`. Defaults to None.

        Returns:
            RLAStage: The stage.
        """
        source, add_first = RLA_VARIANTS[self.variant]
        # an update that nothing reads is omitted: its parameters would never get a gradient
        num_steps = len(blocks) - 1 if is_last and not self.with_hidden else len(blocks)
        cell = None
        if self.rla_channels and num_steps:
            cell = make_rla_cell(
                channels,
                self.rla_channels,
                num_steps,
                cell=self.cell,
                share=self.share,
                post_act=self.post_act,
                add_first=add_first,
                norm_layer=norm_layer,
            )
        return RLAStage(blocks, cell, source, with_cp, before_last)

    def make_hidden_norm(self, norm_layer: NormLayer) -> nn.Module | None:
        """Build the norm of the returned state, or return None if h is the output of an activation."""
        normed = self.with_hidden and self.cell == 'conv' and not self.post_act
        return norm_layer(self.rla_channels) if normed else None
