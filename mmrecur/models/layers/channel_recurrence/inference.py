"""Inference form of the CRC layer and of its module: fused norms and joined convolutions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm_of_sum, is_fusible
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation

if TYPE_CHECKING:
    from mmrecur.models.layers.channel_recurrence.conv import ChannelRecurrentConv
    from mmrecur.models.layers.channel_recurrence.recurrent_module import RecurrentModule


class StepConv(nn.Module):
    """Compute ``W_x * x + W_h * h + b``, as one convolution if both kernels have the same size.

    On a CPU at batch size 1, one convolution saves up to a quarter of the time of two; in large batches it
    makes no difference. For kernels of different sizes the smaller one would have to be padded with zeros, so
    there the two convolutions stay.

    Args:
        conv_x (nn.Conv2d): Convolution of x.
        conv_h (nn.Conv2d): Convolution of h.
    """

    def __init__(self, conv_x: nn.Conv2d, conv_h: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.conv_h = conv_x, conv_h
        if conv_x.kernel_size == conv_h.kernel_size:
            weight = torch.cat([conv_x.weight.data, conv_h.weight.data], dim=1)
            biases = [conv.bias.data for conv in (conv_x, conv_h) if conv.bias is not None]
            self.conv = _make_conv(weight, sum(biases) if biases else None, conv_x.padding[0])
            self.conv.weight.data = weight  # in its own memory layout
            self.conv_h = None

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Compute the sum.

        Args:
            x (Tensor): Shape (N, S_in, H, W).
            h (Tensor): Shape (N, S_out, H, W).

        Returns:
            Tensor: Shape (N, S_out, H, W).
        """
        if self.conv_h is None:
            return self.conv(torch.cat([x, h], dim=1))
        total = self.conv(x)
        total += self.conv_h(h)
        return total


def fuse_steps(layer: ChannelRecurrentConv) -> None:
    """Switch a CRC layer to its inference form, in place; a second call does nothing.

    - ``'separate_bn'``: each step gets convolutions of its own, with its norm fused.
    - ``'shared_bn'``: the norm is fused into the convolutions of all steps.
    - ``'linear'``: the norms stay, because h is read before them. :class:`RecurrentModule` fuses them into
      the convolution that reads the output.

    The two convolutions of a step become one (:class:`StepConv`). A layer without recurrence gets the
    convolution with the product of both kernels.

    Args:
        layer (ChannelRecurrentConv): The layer.
    """
    if layer.step_convs is not None:
        return
    if not layer.recurrent and layer.conv_h is not None:
        layer.conv_x, layer.conv_h = _make_conv(*layer.composed()), None
    if layer.activation == 'shared_bn':
        fused = fuse_norm_of_sum(layer.conv_x, layer.conv_h, layer.norms[0])
        layer.conv_x, layer.conv_h, layer.norms[0] = fused
    if layer.activation == 'separate_bn' and all(map(is_fusible, layer.norms)):
        convs = [_fused_step(layer, step) for step in range(layer.steps)]
        layer.norms = nn.ModuleList()
    elif layer.conv_h is None:
        convs = [layer.conv_x]
    elif layer.conv_x.kernel_size == layer.conv_h.kernel_size:
        convs = [layer.conv_x, StepConv(layer.conv_x, layer.conv_h)]
    else:
        return  # nothing to join: all steps keep sharing the two convolutions
    layer.step_convs = nn.ModuleList(convs)
    layer.conv_x = layer.conv_h = None


def _fused_step(layer: ChannelRecurrentConv, step: int) -> nn.Module:
    """Return the convolution of a step with the norm of the step fused."""
    conv_h = copy.deepcopy(layer.conv_h) if step else None
    conv_x, conv_h, _ = fuse_norm_of_sum(copy.deepcopy(layer.conv_x), conv_h, layer.norms[step])
    return conv_x if conv_h is None else StepConv(conv_x, conv_h)


def fuse_output_norms(module: RecurrentModule) -> None:
    """Fuse the norms of a linear CRC layer into the 1x1 convolution that reads its output, in place.

    A clamp remains of each norm and its ReLU, see :func:`fuse_preactivation`.

    Args:
        module (RecurrentModule): The CRC layer and the convolution.
    """
    crc, conv = module.crc, module.conv
    clamps, weights, bias = [], [], 0
    for norm, weight in zip(crc.norms, conv.weight.data.split(crc.out_channels, dim=1)):
        clamp, (fused,) = fuse_preactivation(norm, [_make_conv(weight, None, 0)])
        clamps.append(clamp)
        weights.append(fused.weight.data)
        bias = bias + fused.bias.data
    crc.norms = nn.ModuleList(clamps)
    crc.relu = nn.Identity()
    conv.weight.data = torch.cat(weights, dim=1)
    conv.bias = nn.Parameter(bias)


def _make_conv(weight: Tensor, bias: Tensor | None, padding: int) -> nn.Conv2d:
    """Return a convolution with the given weight and bias."""
    out_channels, in_channels, kernel_size, _ = weight.shape
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=padding,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    conv.weight.data.copy_(weight)
    if bias is not None:
        conv.bias.data.copy_(bias)
    return conv
