"""The recurrent cell of recurrent layer aggregation (RLA) and its equation.

Zhao, Fang and Li, *Recurrence along Depth: Deep Convolutional Neural Networks with Recurrent Layer
Aggregation*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Section 3.3 and Figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine

#: Variant -> (aggregated map, whether it joins the state before BN-tanh-conv); Figure 4.
RLA_VARIANTS: dict[str, tuple[str, bool]] = {
    'v1': ('residual', True),
    'v2': ('residual', False),
    'v3': ('output', True),
    'v4': ('output', False),
    'v5': ('shortcut', True),
    'v6': ('shortcut', False),
}
#: State of a cell: h, or (h, c) with the memory c of an LSTM. None stands for zeros.
State = Tensor | tuple[Tensor, Tensor] | None


def hidden_state(state: State) -> Tensor | None:
    """Return h, the part of the state that blocks and classifiers read."""
    return state[0] if isinstance(state, tuple) else state


def downsample_hidden(h: State, stride: int) -> State:
    """Pool a state to the resolution of the output of a strided block.

    Args:
        h (Tensor or tuple[Tensor, Tensor], optional): Shape (N, k, H, W), or two such maps. None stands for
            zeros.
        stride (int): Stride of the block.

    Returns:
        Tensor or tuple[Tensor, Tensor], optional: Average of each window, shape
        (N, k, ceil(H / stride), ceil(W / stride)). Sizes are rounded up as in a padded convolution.
    """
    if h is None or stride == 1:
        return h
    if isinstance(h, tuple):
        return downsample_hidden(h[0], stride), downsample_hidden(h[1], stride)
    return F.avg_pool2d(h, stride, stride, ceil_mode=True, count_include_pad=False)


class RecurrentCell(nn.Module):
    """Base of the recurrent cells of a stage.

    Step t reads ``s_t``, the map aggregated from block t, with a 1x1 convolution W_o (``conv_out``), and
    updates the state with the result. All steps share W_o. Each step has its own norm (``norms``).

    Args:
        in_channels (int): Channels C of the aggregated maps.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If a number is not a positive integer.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 32,
        num_steps: int = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_int('in_channels', in_channels, 1)
        check_int('hidden_channels', hidden_channels, 1)
        check_int('num_steps', num_steps, 1)
        self.num_steps = num_steps
        self.conv_out = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.norms = nn.ModuleList(norm_layer(hidden_channels) for _ in range(num_steps))

    def forward(self, h: State, s: Tensor, step: int) -> State:
        """Update the state.

        Args:
            h (Tensor or tuple[Tensor, Tensor], optional): State before the block, at the
                resolution of its output, shape (N, k, H, W), or two such maps of an LSTM. None stands for
                zeros.
            s (Tensor): Map aggregated from the block, shape (N, C, H, W).
            step (int): Index of the update in the stage.

        Returns:
            Tensor or tuple[Tensor, Tensor]: State after the block, shape (N, k, H, W).
        """
        return self.update(h, self.readout(step)(s), step)

    def readout(self, step: int) -> nn.Module:
        """Return the layer that reads the aggregated map of a step."""
        return self.conv_out

    def step_parts(self, step: int) -> list[nn.Module]:
        """Return the modules that only one step uses."""
        return [self.norms[step]]

    def update(self, h: State, new: Tensor, step: int) -> State:
        """Update the state with ``new``, the output of :meth:`readout`, shape (N, k, H, W)."""
        raise NotImplementedError

    def fused(self, last_convs: Sequence[nn.Conv2d] | None = None) -> FusedCell | None:
        """Build the inference form of the cell.

        Args:
            last_convs (Sequence[nn.Conv2d], optional): Last convolution of each block, with its norm fused,
                which computes ``s_t`` from an inner map. If given, it is collapsed with W_o, and the fused
                cell aggregates the inner maps instead. Defaults to None.

        Returns:
            FusedCell, optional: The fused cell. None if a norm cannot be fused.
        """
        if not all(is_fusible(norm) for norm in self.norms):
            return None
        return self._fused(last_convs)

    def _fused(self, last_convs: Sequence[nn.Conv2d] | None) -> FusedCell:
        """Build the fused cell of a cell whose norms can be fused."""
        raise NotImplementedError


class FusedCell(nn.Module):
    """Base of the inference forms of cells, which have a separate readout for each step.

    If ``s = W_3 a + b_3`` and ``a`` has fewer channels than ``s``, the product ``W_o W_3`` is one small
    matrix.

    Args:
        cell (RecurrentCell): Cell in evaluation whose norms can be fused.
        last_convs (Sequence[nn.Conv2d], optional): See :meth:`RecurrentCell.fused`.
        norm_behind (bool): Whether the norm of a step, ``g * x + b``, follows W_o and is fused into it.
    """

    def __init__(
        self, cell: RecurrentCell, last_convs: Sequence[nn.Conv2d] | None, norm_behind: bool
    ) -> None:
        super().__init__()
        self.num_steps = cell.num_steps
        inputs = []
        for step, norm in enumerate(cell.norms):
            weight, bias = cell.conv_out.weight.data, cell.conv_out.weight.new_zeros(())
            if last_convs is not None:
                # in double precision, so that the product is rounded only once
                w_o, last = weight.flatten(1).double(), last_convs[step]
                if last.bias is not None:
                    bias = (w_o @ last.bias.data.double()).to(weight)
                weight = (w_o @ last.weight.data.flatten(1).double()).to(weight)[..., None, None]
            if norm_behind:
                scale, shift = norm_affine(norm)
                weight = weight * scale.view(-1, 1, 1, 1)
                bias = bias * scale + shift
            conv = nn.Conv2d(weight.size(1), weight.size(0), 1, device=weight.device)
            conv.to(weight.dtype)
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)
            inputs.append(conv)
        self.inputs = nn.ModuleList(inputs)

    def forward(self, h: State, s: Tensor, step: int) -> State:
        """See :meth:`RecurrentCell.forward`."""
        return self.update(h, self.readout(step)(s), step)

    def readout(self, step: int) -> nn.Module:
        """See :meth:`RecurrentCell.readout`."""
        return self.inputs[step]

    def step_parts(self, step: int) -> list[nn.Module]:
        """See :meth:`RecurrentCell.step_parts`."""
        return [self.inputs[step]]

    def update(self, h: State, new: Tensor, step: int) -> State:
        """See :meth:`RecurrentCell.update`."""
        raise NotImplementedError


class RLACell(RecurrentCell):
    r"""The recurrent cell that the paper proposes.

    The map ``s_t`` aggregated from block t updates the state of ``k = hidden_channels`` channels:

    .. math::
        h_t &= W_r * \tanh(\mathrm{BN}_t(h_{t-1} + W_o * s_t)) &\quad\text{(add\_first)}\\
        h_t &= W_r * \tanh(\mathrm{BN}_t(h_{t-1})) + W_o * s_t &\quad\text{(otherwise)}

    All steps of the stage share the 1x1 convolution W_o (``conv_out``) and the 3x3 convolution W_r
    (``recurrent_conv``). Each step has its own norm (``norms``).

    Args:
        in_channels (int): Channels C of the aggregated maps.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        add_first (bool): Add the new information before BN-tanh-conv (v1, v3, v5) instead of after it
            (v2, v4, v6). Defaults to True.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
        recurrent_conv (nn.Module, optional): W_r. ``nn.Identity()`` leaves it to the caller, for stages that
            share one. Defaults to None, a 3x3 convolution.

    Raises:
        ValueError: If a number is not a positive integer.

    Example:
        >>> import torch
        >>> cell = RLACell(in_channels=256, hidden_channels=32, num_steps=3)
        >>> h = torch.zeros(2, 32, 14, 14)
        >>> for step in range(3):
        ...     h = cell(h, torch.rand(2, 256, 14, 14), step)
        >>> h.shape
        torch.Size([2, 32, 14, 14])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 32,
        num_steps: int = 1,
        add_first: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        recurrent_conv: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, num_steps, norm_layer)
        self.add_first = add_first
        if recurrent_conv is None:
            recurrent_conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False)
        self.recurrent_conv = recurrent_conv

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`RecurrentCell.update`."""
        if self.add_first:
            state = new if h is None else h + new
            return self.recurrent_conv(torch.tanh(self.norms[step](state)))
        state = torch.zeros_like(new) if h is None else h
        return self.recurrent_conv(torch.tanh(self.norms[step](state))) + new

    def _fused(self, last_convs: Sequence[nn.Conv2d] | None) -> FusedRLACell:
        return FusedRLACell(self, last_convs)


class FusedRLACell(FusedCell):
    r"""The inference form of :class:`RLACell`.

    The norm of a step is an affine map ``g * x + b``. Before the tanh it is fused into W_o:
    ``tanh(g h + (g W_o) s + b)``.

    Args:
        cell (RLACell): Cell in evaluation whose norms can be fused.
        last_convs (Sequence[nn.Conv2d], optional): See :meth:`RecurrentCell.fused`.
    """

    def __init__(self, cell: RLACell, last_convs: Sequence[nn.Conv2d] | None = None) -> None:
        super().__init__(cell, last_convs, norm_behind=cell.add_first)
        self.add_first = cell.add_first
        self.recurrent_conv = cell.recurrent_conv
        affine = [norm_affine(norm) for norm in cell.norms]
        scales, shifts = ([nn.Parameter(v.view(-1, 1, 1).clone()) for v in vs] for vs in zip(*affine))
        self.scales = nn.ParameterList(scales)
        self.shifts = None if cell.add_first else nn.ParameterList(shifts)

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`FusedCell.update`."""
        if self.add_first:
            state = new if h is None else torch.addcmul(new, h, self.scales[step])
            return self.recurrent_conv(torch.tanh(state))
        if h is None:
            state = self.shifts[step].expand_as(new).clone()
        else:
            state = torch.addcmul(self.shifts[step], h, self.scales[step])
        return self.recurrent_conv(torch.tanh(state)) + new
