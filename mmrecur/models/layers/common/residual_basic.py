"""The basic residual block of two 3x3 convolutions, and its parameter-free shortcut."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer, shortcut_projection

#: Builds a block's convolution from its place (1 or 2), input channels, output channels and stride.
ConvLayer = Callable[[int, int, int, int], nn.Module]


def conv3x3(place: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A plain 3x3 convolution, the default of :class:`BasicBlock`."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, and zeros for the channels that are new.

    `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_, option A, with half of the zeros on each side of
    the channels.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output, at least as many.
        stride (int): Distance of the pixels that are taken.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the shortcut.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride), sizes rounded up.
        """
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Basic residual block, 3x3 - 3x3.

    `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        padded_shortcut (bool): :class:`PaddedShortcut` instead of a projection where resolution or width
            change. Defaults to False.
        conv_layer (Callable): Builds the convolutions. Defaults to :func:`conv3x3`.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        padded_shortcut: bool = False,
        conv_layer: ConvLayer = conv3x3,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = conv_layer(1, in_channels, out_channels, stride)
        self.bn1 = norm_layer(out_channels)
        self.conv2 = conv_layer(2, out_channels, out_channels, 1)
        self.bn2 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = (
                PaddedShortcut(in_channels, out_channels, stride)
                if padded_shortcut
                else shortcut_projection(in_channels, out_channels, stride, False, norm_layer)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride), sizes rounded up.
        """
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def switch_to_deploy(self) -> None:
        """Fold the norms into the convolutions; outputs in evaluation stay the same."""
        self.conv1, self.bn1 = fuse_last(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_last(self.conv2, self.bn2)
        if isinstance(self.downsample, nn.Sequential):
            self.downsample[-2], self.downsample[-1] = fuse_norm(*self.downsample)


def fuse_last(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Fold a norm into the convolution before it, the last one of a sequence if it is one.

    Args:
        conv (nn.Module): A convolution or a sequence that ends in one.
        norm (nn.Module): The norm that follows.

    Returns:
        tuple[nn.Module, nn.Module]: See :func:`fuse_norm`.
    """
    if isinstance(conv, nn.Sequential):
        conv[-1], norm = fuse_norm(conv[-1], norm)
        return conv, norm
    return fuse_norm(conv, norm)
