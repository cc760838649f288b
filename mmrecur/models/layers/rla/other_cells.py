"""Recurrent cells of the ablations in the RLA paper, and the function that builds any cell.

Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Section 4.4,
Appendix B.4.1, Figures 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.rla.cell import FusedCell, RecurrentCell, RLACell, State

#: Recurrent units: the 3x3 convolution that the paper proposes, and two gated units.
CELLS = ('conv', 'lstm', 'gru')
#: Values of ``share``: the steps of a stage share the convolutions of a cell, or each step has its own.
CELL_SHARES = ('stage', None)


class PostActRLACell(RecurrentCell):
    r"""The cell with the post-activated unit (Appendix B.4.1, Figure 7).

    .. math::
        h_t = \tanh(\mathrm{BN}_t(W_r * (h_{t-1} + W_o * s_t)))

    Args:
        in_channels (int): Channels C of the aggregated maps.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 32,
        num_steps: int = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, hidden_channels, num_steps, norm_layer)
        self.recurrent_conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False)

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`RecurrentCell.update`."""
        state = new if h is None else h + new
        return torch.tanh(self.norms[step](self.recurrent_conv(state)))

    def _fused(self, last_convs: Sequence[nn.Conv2d] | None) -> FusedPostActRLACell:
        return FusedPostActRLACell(self, last_convs)


class FusedPostActRLACell(FusedCell):
    """The inference form of :class:`PostActRLACell`: each step has a W_r into which its norm is fused.

    Args:
        cell (PostActRLACell): Cell in evaluation whose norms can be fused.
        last_convs (Sequence[nn.Conv2d], optional): See :meth:`RecurrentCell.fused`.
    """

    def __init__(self, cell: PostActRLACell, last_convs: Sequence[nn.Conv2d] | None = None) -> None:
        super().__init__(cell, last_convs, norm_behind=False)
        fused = (fuse_norm(cell.recurrent_conv, norm)[0] for norm in cell.norms)
        self.recurrent_convs = nn.ModuleList(fused)

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`FusedCell.update`."""
        return torch.tanh(self.recurrent_convs[step](new if h is None else h + new))


class ConvLSTM(nn.Module):
    r"""A convolutional LSTM unit without peepholes (Appendix B.4.1, Figure 6).

    One 3x3 convolution of ``cat(input, h)`` without bias computes i, f, o and g, in this order:

    .. math::
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g)\\
        h_t &= \sigma(o) \tanh(c_t)

    Args:
        channels (int): Channels k of the input, of h and of c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_int('channels', channels, 1)
        self.gates = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1, bias=False)

    def forward(self, state: tuple[Tensor, Tensor] | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Update the state.

        Args:
            state (tuple[Tensor, Tensor], optional): h and c, each of shape (N, k, H, W). None
                stands for zeros.
            x (Tensor): Input of the same shape.

        Returns:
            tuple[Tensor, Tensor]: h and c after the step.
        """
        h, c = (torch.zeros_like(x), None) if state is None else state
        i, f, o, g = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        update = torch.sigmoid(i) * torch.tanh(g)
        c = update if c is None else torch.sigmoid(f) * c + update
        return torch.sigmoid(o) * torch.tanh(c), c


class ConvGRU(nn.Module):
    r"""A convolutional GRU unit with group norms, from the code of the authors.

    .. math::
        r, u &= \sigma(\mathrm{GN}(W_g * \mathrm{cat}(x, h_{t-1})))\\
        y &= \tanh(\mathrm{GN}(W_y * \mathrm{cat}(x, r h_{t-1})))\\
        h_t &= u h_{t-1} + (1 - u) y

    Both convolutions are 3x3 with bias. The norms take statistics over all channels and pixels of r, u and y.

    Args:
        channels (int): Channels k of the input and of h.
        eps (float): Epsilon of the norms. Defaults to 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        check_int('channels', channels, 1)
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        # two groups are separate norms for r and u
        self.gates_norm = nn.GroupNorm(2, 2 * channels, eps)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.candidate_norm = nn.GroupNorm(1, channels, eps)

    def forward(self, h: Tensor | None, x: Tensor) -> Tensor:
        """Update the state.

        Args:
            h (Tensor, optional): State, shape (N, k, H, W). None stands for zeros.
            x (Tensor): Input of the same shape.

        Returns:
            Tensor: h after the step.
        """
        h = torch.zeros_like(x) if h is None else h
        gates = torch.sigmoid(self.gates_norm(self.gates(torch.cat([x, h], dim=1))))
        r, u = gates.chunk(2, dim=1)
        y = torch.tanh(self.candidate_norm(self.candidate(torch.cat([x, r * h], dim=1))))
        return u * h + (1 - u) * y


class GatedRLACell(RecurrentCell):
    r"""The cell with a gated unit whose input is :math:`\tanh(\mathrm{BN}_t(W_o * s_t))`.

    Args:
        unit (nn.Module): :class:`ConvLSTM` or :class:`ConvGRU` of k channels, shared by the steps.
        in_channels (int): Channels C of the aggregated maps.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        unit: nn.Module,
        in_channels: int,
        hidden_channels: int = 32,
        num_steps: int = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, hidden_channels, num_steps, norm_layer)
        self.unit = unit

    def update(self, h: State, new: Tensor, step: int) -> State:
        """See :meth:`RecurrentCell.update`."""
        return self.unit(h, torch.tanh(self.norms[step](new)))

    def _fused(self, last_convs: Sequence[nn.Conv2d] | None) -> FusedGatedRLACell:
        return FusedGatedRLACell(self, last_convs)


class FusedGatedRLACell(FusedCell):
    """The inference form of :class:`GatedRLACell`: each step has a W_o into which its norm is fused.

    Args:
        cell (GatedRLACell): Cell in evaluation whose norms can be fused.
        last_convs (Sequence[nn.Conv2d], optional): See :meth:`RecurrentCell.fused`.
    """

    def __init__(self, cell: GatedRLACell, last_convs: Sequence[nn.Conv2d] | None = None) -> None:
        super().__init__(cell, last_convs, norm_behind=True)
        self.unit = cell.unit

    def update(self, h: State, new: Tensor, step: int) -> State:
        """See :meth:`FusedCell.update`."""
        return self.unit(h, torch.tanh(new))


class UnsharedCells(nn.Module):
    """The cells of a stage whose steps share nothing.

    Args:
        cells (Sequence[nn.Module]): One cell of a single step for each step, all of the same kind.
    """

    def __init__(self, cells: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(cells)
        self.num_steps = len(cells)

    def forward(self, h: State, s: Tensor, step: int) -> State:
        """See :meth:`RecurrentCell.forward`."""
        return self.steps[step](h, s, 0)

    def readout(self, step: int) -> nn.Module:
        """See :meth:`RecurrentCell.readout`."""
        return self.steps[step].readout(0)

    def step_parts(self, step: int) -> list[nn.Module]:
        """See :meth:`RecurrentCell.step_parts`."""
        return [self.steps[step]]

    def update(self, h: State, new: Tensor, step: int) -> State:
        """See :meth:`RecurrentCell.update`."""
        return self.steps[step].update(h, new, 0)

    def fused(self, last_convs: Sequence[nn.Conv2d] | None = None) -> UnsharedCells | None:
        """See :meth:`RecurrentCell.fused`."""
        fused = [
            cell.fused(None if last_convs is None else last_convs[step : step + 1])
            for step, cell in enumerate(self.steps)
        ]
        return None if None in fused else UnsharedCells(fused)


def make_rla_cell(
    in_channels: int,
    hidden_channels: int = 32,
    num_steps: int = 1,
    cell: str = 'conv',
    share: str | None = 'stage',
    post_act: bool = False,
    add_first: bool = True,
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> RecurrentCell | UnsharedCells:
    """Build the recurrent cell of a stage.

    Args:
        in_channels (int): Channels C of the aggregated maps.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        cell (str): ``'conv'``, ``'lstm'`` or ``'gru'``. Defaults to 'conv'.
        share (str, optional): ``'stage'``: the steps share the convolutions. None: each step has its own.
            Defaults to 'stage'.
        post_act (bool): Activate after the recurrent convolution instead of before it. Defaults to False.
        add_first (bool): Add the new information before the recurrent convolution instead of after it.
            Defaults to True.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Returns:
        RecurrentCell or UnsharedCells: The cell.

    Raises:
        TypeError, ValueError: If an argument is wrong, or if the cell does not support ``post_act`` or
            ``add_first``.
    """
    check_cell(cell, post_act, add_first)
    check_choice('share', share, CELL_SHARES)
    check_int('num_steps', num_steps, 1)
    if share is None:
        return UnsharedCells(
            [
                make_rla_cell(in_channels, hidden_channels, 1, cell, 'stage', post_act, add_first, norm_layer)
                for _ in range(num_steps)
            ]
        )
    if cell != 'conv':
        unit = (ConvLSTM if cell == 'lstm' else ConvGRU)(hidden_channels)
        return GatedRLACell(unit, in_channels, hidden_channels, num_steps, norm_layer)
    if post_act:
        return PostActRLACell(in_channels, hidden_channels, num_steps, norm_layer)
    return RLACell(in_channels, hidden_channels, num_steps, add_first, norm_layer)


def check_cell(cell: str, post_act: bool, add_first: bool) -> None:
    """Raise unless ``post_act`` and ``add_first`` suit the cell, see :func:`make_rla_cell`.

    Raises:
        TypeError, ValueError: If they do not. The message names the argument.
    """
    check_choice('cell', cell, CELLS)
    check_flag(post_act=post_act, add_first=add_first)
    if cell != 'conv' and post_act:
        raise ValueError(f"post_act=True with cell={cell!r}, allowed: False, or cell='conv'")
    if not add_first and (cell != 'conv' or post_act):
        option = f'cell={cell!r}' if cell != 'conv' else 'post_act=True'
        raise ValueError(
            f'{option} where new information is added last (variants v2, v4, v6), allowed: '
            "variants v1, v3, v5, or cell='conv' with post_act=False"
        )
