"""Parts of residual networks: stem, shortcuts, basic and bottleneck blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.attention import CBAM
from mmrecur.models.layers.common.fuse import fuse_norm

#: Builds a norm from a number of channels.
NormLayer = Callable[[int], nn.Module]
#: Builds a block's convolution from its place (1 or 2), input channels, output channels and stride.
ConvLayer = Callable[[int, int, int, int], nn.Module]


class DeepStem(nn.Sequential):
    """Three 3x3 convolutions that replace the 7x7 convolution of the stem (ResNet-D).

    `He et al. 2019, Bag of Tricks <https://arxiv.org/abs/1812.01187>`_. The stem halves the resolution; the
    max pooling after it belongs to the network.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Output channels. The first two convolutions have half as many.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(self, in_channels: int, channels: int, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        half = channels // 2
        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate([(in_channels, half), (half, half), (half, channels)]):
            layers += [
                nn.Conv2d(cin, cout, 3, stride=2 if i == 0 else 1, padding=1, bias=False),
                norm_layer(cout),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        for i in range(0, len(self), 3):
            self[i], self[i + 1] = fuse_norm(self[i], self[i + 1])


def shortcut_projection(
    in_channels: int, out_channels: int, stride: int, avg_down: bool, norm_layer: NormLayer
) -> nn.Sequential:
    """Build the projection shortcut of a block that changes resolution or width.

    Args:
        in_channels (int): Channels of the block's input.
        out_channels (int): Channels of the block's output.
        stride (int): Stride of the block.
        avg_down (bool): Use average pooling and a 1x1 convolution of stride 1 (ResNet-D) instead of a
            strided 1x1 convolution.
        norm_layer (Callable): Builds a norm from a number of channels.

    Returns:
        nn.Sequential: ``conv, norm``, or ``pool, conv, norm`` with ``avg_down``.
    """
    layers: list[nn.Module] = []
    if avg_down:
        # at stride 1 an identity keeps the parameter names the same in all blocks
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        layers.append(nn.Identity() if stride == 1 else pool)
        stride = 1
    layers += [nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm_layer(out_channels)]
    return nn.Sequential(*layers)


class PaddedShortcut(nn.Module):
    """Parameter-free shortcut: subsample the pixels and pad the channels with zeros.

    Option A of `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_, with half of the zeros before and half
    after the channels.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output, at least ``in_channels``.
        stride (int): Distance between the pixels that are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


def conv3x3(place: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build a plain 3x3 convolution, the default ``conv_layer`` of :class:`BasicBlock`."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Basic residual block, 3x3 - 3x3.

    `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        padded_shortcut (bool): Use a :class:`PaddedShortcut` instead of a projection where resolution or
            width change. Defaults to False.
        conv_layer (Callable): Builds the convolutions. Defaults to :func:`conv3x3`.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
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
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), sizes rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        self.conv1, self.bn1 = fuse_last(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_last(self.conv2, self.bn2)
        if isinstance(self.downsample, nn.Sequential):
            self.downsample[-2], self.downsample[-1] = fuse_norm(*self.downsample)


def fuse_last(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Fuse a norm into the convolution before it, which may be the last layer of a sequence.

    Args:
        conv (nn.Module): A convolution or a sequence that ends with one.
        norm (nn.Module): The norm that follows.

    Returns:
        tuple[nn.Module, nn.Module]: See :func:`fuse_norm`.
    """
    if isinstance(conv, nn.Sequential):
        conv[-1], norm = fuse_norm(conv[-1], norm)
        return conv, norm
    return fuse_norm(conv, norm)


class Bottleneck(nn.Module):
    """Bottleneck residual block, 1x1 - 3x3 - 1x1.

    `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the 3x3 convolution. Defaults to 1.
        dilation (int): Dilation of the 3x3 convolution. Defaults to 1.
        groups (int): Groups of the 3x3 convolution. Defaults to 1.
        attention (nn.Module, optional): Layer applied to the residual, such as a :class:`ChannelGate` or
            :class:`CBAM`. It must keep the shape. Defaults to None.
        avg_down (bool): Use average pooling on strided shortcuts (ResNet-D). Defaults to False.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
        stride_first (bool): Put the stride on the first 1x1 convolution, as networks converted from Caffe
            have it. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        attention: nn.Module | None = None,
        avg_down: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        first, second = (stride, 1) if stride_first else (1, stride)
        conv2_args = dict(padding=dilation, dilation=dilation, groups=groups, bias=False)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, first, bias=False)
        self.bn1 = norm_layer(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, second, **conv2_args)
        self.bn2 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention
        self.downsample = (
            shortcut_projection(in_channels, out_channels, stride, avg_down, norm_layer)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), sizes rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.attention is not None:
            x = self.attention(x)
        return self.relu(x + shortcut)

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fuse_norm(self.conv3, self.bn3)
        if isinstance(self.attention, CBAM):
            self.attention.switch_to_deploy()
        if self.downsample is not None:
            self.downsample[-2], self.downsample[-1] = fuse_norm(self.downsample[-2], self.downsample[-1])
