"""The block of MobileNetV2 and the widths of the network."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mmrecur.models.layers.common.attention import ChannelGate
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer


def round_channels(channels: float) -> int:
    """Round a number of channels to a multiple of 8 without losing more than a tenth.

    Args:
        channels (float): A width times a multiplier.

    Returns:
        int: The nearest multiple of 8, at least 8. If it is below 90 % of ``channels``, the next multiple.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def eca_kernel_size(channels: int) -> int:
    """Return the kernel size of efficient channel attention in a MobileNetV2.

    Args:
        channels (int): Channels of a block's residual.

    Returns:
        int: 1 for fewer than 96 channels, otherwise 3, as in the authors' code of RLA and of ResNet-Shared.
    """
    return 1 if channels < 96 else 3


def check_width_mult(width_mult: float) -> None:
    """Raise a ValueError unless the width multiplier of a MobileNetV2 is a positive number."""
    is_number = isinstance(width_mult, (int, float)) and not isinstance(width_mult, bool)
    if not is_number or not 0 < width_mult < math.inf:
        raise ValueError(f'width_mult={width_mult!r}, allowed: a positive number')


class InvertedResidual(nn.Module):
    """Inverted residual block, 1x1 - depthwise 3x3 - 1x1.

    `Sandler et al. 2018 <https://arxiv.org/abs/1801.04381>`_. ReLU6 follows the first two convolutions. The
    input is added where the block keeps its shape. The layers have the names of :class:`Bottleneck`.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels of the depthwise convolution. If they equal ``in_channels``, the
            first 1x1 convolution is omitted.
        out_channels (int): Channels of the output.
        stride (int): Stride of the depthwise convolution. Defaults to 1.
        attention (ChannelGate, optional): Channel attention on the residual. Defaults to None.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import InvertedResidual
        >>> InvertedResidual(16, 96, 24, stride=2)(torch.rand(1, 16, 8, 8)).shape
        torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        attention: ChannelGate | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.has_shortcut = stride == 1 and in_channels == out_channels
        expands = inner_channels != in_channels
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False) if expands else None
        self.bn1 = norm_layer(inner_channels) if expands else None
        self.conv2 = depthwise_conv(inner_channels, stride)
        self.bn2 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU6(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), sizes rounded up."""
        residual = x if self.conv1 is None else self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        if self.attention is not None:
            residual = self.attention(residual)
        return residual + x if self.has_shortcut else residual

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        if self.conv1 is not None:
            self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fuse_norm(self.conv3, self.bn3)


def depthwise_conv(channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 depthwise convolution without bias."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
