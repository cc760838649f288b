"""Recurrent layer aggregation.

Zhao, Fang and Li, *Recurrence along Depth: Deep Convolutional Neural Networks with Recurrent Layer
Aggregation*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Section 3.3 and Figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_int
from .fuse import is_foldable, norm_affine

#: Variant -> (what is aggregated, whether it joins the state before BN-tanh-conv or after); Figure 4.
RLA_VARIANTS: dict[str, tuple[str, bool]] = {
    'v1': ('residual', True),
    'v2': ('residual', False),
    'v3': ('output', True),
    'v4': ('output', False),
    'v5': ('shortcut', True),
    'v6': ('shortcut', False),
}


def downsample_hidden(h: Tensor | None, stride: int) -> Tensor | None:
    """Bring a hidden state to the resolution of a strided block's output by average pooling.

    Args:
        h (Tensor, optional): Shape (N, k, H, W), or None for zeros.
        stride (int): The block's stride.

    Returns:
        Tensor, optional: Shape (N, k, ceil(H / stride), ceil(W / stride)): rounded up as a padded
        convolution does, so that odd sizes fit.
    """
    if h is None or stride == 1:
        return h
    return F.avg_pool2d(h, stride, stride, ceil_mode=True, count_include_pad=False)


def tanh_(x: Tensor) -> Tensor:
    """Hyperbolic tangent in place, for inference.

    Float32 on a CPU goes through ``2 sigmoid(2 x) - 1``, whose four vectorised passes take a fifth of the
    time of torch's tanh there and are as exact as its argument (1.2e-7 absolute); bf16 would lose small
    values that way.

    Args:
        x (Tensor): Any shape; overwritten.

    Returns:
        Tensor: ``x``.
    """
    # the type check comes first: stand-ins of tracers have no dtype to compare
    if type(x) is Tensor and x.dtype == torch.float32 and x.device.type == 'cpu':
        if not torch.is_grad_enabled():  # autograd would need what the next pass overwrites
            return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()


class RLACell(nn.Module):
    r"""The recurrent path of one stage.

    With ``s_t`` what is aggregated from block t, the state of ``k = hidden_channels`` channels becomes

    .. math::
        h_t &= W_r * \tanh(\mathrm{BN}_t(h_{t-1} + W_o * s_t)) &\quad\text{(add\_first)}\\
        h_t &= W_r * \tanh(\mathrm{BN}_t(h_{t-1})) + W_o * s_t &\quad\text{(otherwise)}

    The 1x1 convolution W_o (``conv_out``) and the 3x3 convolution W_r (``recurrent_conv``) are shared
    by all steps of the stage, each step has a norm of its own (``norms``).

    Args:
        in_channels (int): Channels C of what is aggregated.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        num_steps (int): Updates in the stage. Defaults to 1.
        add_first (bool): Whether new information joins before BN-tanh-conv (v1, v3, v5) or after it
            (v2, v4, v6). Defaults to True.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If a count is not a positive integer.

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
    ) -> None:
        super().__init__()
        check_int('in_channels', in_channels, 1)
        check_int('hidden_channels', hidden_channels, 1)
        check_int('num_steps', num_steps, 1)
        self.add_first = add_first
        self.conv_out = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.recurrent_conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(norm_layer(hidden_channels) for _ in range(num_steps))

    def forward(self, h: Tensor | None, s: Tensor, step: int) -> Tensor:
        """Update the state.

        Args:
            h (Tensor, optional): State before the block, at its output's resolution, shape
                (N, k, H, W); None for zeros.
            s (Tensor): What is aggregated from the block, shape (N, C, H, W).
            step (int): Index of the update in the stage.

        Returns:
            Tensor: State after the block, shape (N, k, H, W).
        """
        return self.update(h, self.readout(step)(s), step)

    def readout(self, step: int) -> nn.Module:
        """The layer that reads what is aggregated, for blocks that can apply it more cheaply."""
        return self.conv_out

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """Update the state from what :meth:`readout` gave, shape (N, k, H, W)."""
        if self.add_first:
            state = new if h is None else h + new
            return self.recurrent_conv(torch.tanh(self.norms[step](state)))
        state = torch.zeros_like(new) if h is None else h
        return self.recurrent_conv(torch.tanh(self.norms[step](state))) + new

    def fused(self, last_convs: Sequence[nn.Conv2d] | None = None) -> FusedRLACell | None:
        """The cell in its inference form.

        Args:
            last_convs (Sequence[nn.Conv2d], optional): The convolutions, norms folded, that compute
                ``s_t`` from the blocks' inner maps. Given, they are collapsed with W_o and the fused
                cell aggregates the inner maps instead. Defaults to None.

        Returns:
            FusedRLACell: The fused cell, or None if a norm cannot be folded.
        """
        if not all(is_foldable(norm) for norm in self.norms):
            return None
        return FusedRLACell(self, last_convs)


class FusedRLACell(nn.Module):
    r"""A cell's inference form, a step of which computes what :class:`RLACell` does in evaluation.

    A step's norm is an affine map ``g * x + b``. In front of the tanh it is folded into W_o:
    ``tanh(g h + (g W_o) s + b)``. Where ``s = W_3 a + b_3`` with fewer channels in ``a`` than in ``s``,
    the chain ``W_o W_3`` is one small matrix.

    Args:
        cell (RLACell): The cell in evaluation, with foldable norms.
        last_convs (Sequence[nn.Conv2d], optional): See :meth:`RLACell.fused`.
    """

    def __init__(self, cell: RLACell, last_convs: Sequence[nn.Conv2d] | None = None) -> None:
        super().__init__()
        self.add_first = cell.add_first
        self.recurrent_conv = cell.recurrent_conv
        inputs, scales, shifts = [], [], []
        for step, norm in enumerate(cell.norms):
            weight, bias = cell.conv_out.weight.data, cell.conv_out.weight.new_zeros(())
            scale, shift = norm_affine(norm)
            if last_convs is not None:
                # in double precision: the product of two folded matrices is rounded once
                w_o, last = weight.flatten(1).double(), last_convs[step]
                if last.bias is not None:
                    bias = (w_o @ last.bias.data.double()).to(weight)
                weight = (w_o @ last.weight.data.flatten(1).double()).to(weight)[..., None, None]
            if cell.add_first:
                weight = weight * scale.view(-1, 1, 1, 1)
                bias = bias * scale + shift
            conv = nn.Conv2d(weight.size(1), weight.size(0), 1, device=weight.device)
            conv.to(weight.dtype)
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)
            inputs.append(conv)
            scales.append(nn.Parameter(scale.view(-1, 1, 1).clone()))
            shifts.append(nn.Parameter(shift.view(-1, 1, 1).clone()))
        self.inputs = nn.ModuleList(inputs)
        self.scales = nn.ParameterList(scales)
        self.shifts = None if cell.add_first else nn.ParameterList(shifts)

    def forward(self, h: Tensor | None, s: Tensor, step: int) -> Tensor:
        """Update the state; arguments and result as in :meth:`RLACell.forward`."""
        return self.update(h, self.readout(step)(s), step)

    def readout(self, step: int) -> nn.Module:
        """See :meth:`RLACell.readout`; here every step has its own."""
        return self.inputs[step]

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """Update the state from what :meth:`readout` gave, which may be overwritten."""
        if self.add_first:
            state = new if h is None else torch.addcmul(new, h, self.scales[step])
            return self.recurrent_conv(tanh_(state))
        if h is None:
            state = self.shifts[step].expand_as(new).clone()
        else:
            state = torch.addcmul(self.shifts[step], h, self.scales[step])
        return self.recurrent_conv(tanh_(state)) + new
