"""Pre-activated residual blocks that can also read a hidden state.

He et al., *Identity Mappings in Deep Residual Networks*, ECCV 2016, https://arxiv.org/abs/1603.05027;
with a hidden state: Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021,
https://arxiv.org/abs/2110.11852, Section 3.3 and Tables 7 and 8.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.rla.block import Tap


class PreActBlock(nn.Module):
    """What the two pre-activated blocks share: their input, shortcut and output.

    Norm, ReLU and the first convolution see ``cat(x, h)``. Norm and weight are kept as two, ``bn1`` and
    ``conv1`` for x and ``bn1_hidden`` and ``conv1_hidden`` for h, and the products are added: nothing is
    copied to concatenate, and what reads x has the shapes of the plain network's. The shortcut takes x
    as it is, through a 1x1 convolution without norm where the block changes resolution or width.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels inside the block.
        out_channels (int): Channels of the output.
        kernel_size (int): Size of the first convolution.
        stride (int): The block's stride.
        first_stride (int): Stride of the first convolution.
        hidden_channels (int): Channels of the hidden state, 0 for none.
        norm_layer (Callable): Builds a norm from a channel count.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        first_stride: int,
        hidden_channels: int,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.stride = stride

        def first_conv(channels: int) -> nn.Conv2d:
            return nn.Conv2d(
                channels, inner_channels, kernel_size, first_stride, padding=kernel_size // 2, bias=False
            )

        self.relu = nn.ReLU(inplace=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.bn1 = norm_layer(in_channels)
        self.conv1 = first_conv(in_channels)
        self.bn1_hidden = norm_layer(hidden_channels) if hidden_channels else None
        self.conv1_hidden = first_conv(hidden_channels) if hidden_channels else None
        self.downsample = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def inner(self, x: Tensor) -> Tensor:
        """The input of the last convolution, from the output of the first."""
        raise NotImplementedError

    def residual_conv(self) -> nn.Conv2d:
        """The convolution whose output is the residual; no norm follows it."""
        raise NotImplementedError

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): Hidden state, shape (N, hidden_channels, H, W); None for a block that
                reads none.
            tap (Tap, optional): Reads one of the maps of the output's resolution: the ``'output'``
                itself, the ``'residual'``, the ``'shortcut'``, or ``'inner'``, the input of the last
                convolution. Defaults to None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        first = self.conv1(self.relu1(self.bn1(x)))
        if h is not None and self.conv1_hidden is not None:
            first = first + self.conv1_hidden(self.relu1(self.bn1_hidden(h)))
        inner = self.inner(first)
        residual = self.residual_conv()(inner)
        shortcut = x if self.downsample is None else self.downsample(x)
        output = residual + shortcut
        if tap is not None:
            tap.read(output=output, residual=residual, shortcut=shortcut, inner=inner)
        return output


class PreActBasicBlock(PreActBlock):
    """Two 3x3 convolutions, each after norm and ReLU.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        hidden_channels (int): Channels of the hidden state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        hidden_channels: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            in_channels, inner_channels, out_channels, 3, stride, stride, hidden_channels, norm_layer
        )
        self.bn2 = norm_layer(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, out_channels, 3, padding=1, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """See :meth:`PreActBlock.inner`."""
        return self.relu(self.bn2(x))

    def residual_conv(self) -> nn.Conv2d:
        """See :meth:`PreActBlock.residual_conv`."""
        return self.conv2

    def switch_to_deploy(self) -> None:
        """Fold the norms that follow a convolution; those at the block's input stay."""
        self.conv1, self.conv1_hidden, self.bn2 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn2)


class PreActBottleneck(PreActBlock):
    """Convolutions of 1x1, 3x3 and 1x1, each after norm and ReLU, with the stride on the 3x3.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the 3x3 convolution. Defaults to 1.
        hidden_channels (int): Channels of the hidden state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        hidden_channels: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, inner_channels, out_channels, 1, stride, 1, hidden_channels, norm_layer)
        self.bn2 = norm_layer(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.bn3 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """See :meth:`PreActBlock.inner`."""
        return self.relu(self.bn3(self.conv2(self.relu(self.bn2(x)))))

    def residual_conv(self) -> nn.Conv2d:
        """See :meth:`PreActBlock.residual_conv`."""
        return self.conv3

    def switch_to_deploy(self) -> None:
        """Fold the norms; those at the input leave a clamp behind."""
        self.conv1, self.conv1_hidden, self.bn2 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn2)
        self.conv2, self.bn3 = fuse_norm(self.conv2, self.bn3)
        folded = fuse_preactivation(self.bn1, [self.conv1])
        if folded is None:
            return
        self.bn1, (self.conv1,) = folded
        if self.conv1_hidden is not None:
            self.bn1_hidden, (self.conv1_hidden,) = fuse_preactivation(self.bn1_hidden, [self.conv1_hidden])
        self.relu1 = nn.Identity()
