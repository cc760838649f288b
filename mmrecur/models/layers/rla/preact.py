"""Pre-activated residual blocks that read the recurrent state of RLA.

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
    """Base of the pre-activated blocks: input, shortcut and output.

    Norm, ReLU and the first convolution see ``cat(x, h)``. They are stored in two parts, ``bn1`` and
    ``conv1`` for x, ``bn1_hidden`` and ``conv1_hidden`` for h, whose results are added. This avoids the
    concatenation, and the parts for x keep the shapes of the plain network. The shortcut is x itself, or a
    1x1 convolution of x without norm where the block changes resolution or width.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels inside the block.
        out_channels (int): Channels of the output.
        kernel_size (int): Size of the first convolution.
        stride (int): Stride of the block.
        first_stride (int): Stride of the first convolution.
        hidden_channels (int): Channels of the state, 0 for none.
        norm_layer (Callable): Builds a norm from a number of channels.
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
        """Compute the input of the last convolution from the output of the first."""
        raise NotImplementedError

    def residual_conv(self) -> nn.Conv2d:
        """Return the convolution whose output is the residual."""
        raise NotImplementedError

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): State, shape (N, hidden_channels, H, W). None for a block without
                ``hidden_channels``. Unlike in :class:`RLABottleneck` it does not stand for zeros, which the
                norm would shift.
            tap (Tap, optional): Reads the ``'output'``, the ``'residual'``, the ``'shortcut'`` or
                ``'inner'``, the input of the last convolution. All have the resolution of the output.
                Defaults to None.

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
    """Pre-activated block of two 3x3 convolutions.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        hidden_channels (int): Channels of the state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
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
        """Fuse the norms that follow a convolution. Those at the input of the block stay."""
        self.conv1, self.conv1_hidden, self.bn2 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn2)


class PreActBottleneck(PreActBlock):
    """Pre-activated block of 1x1, 3x3 and 1x1 convolutions, with the stride on the 3x3 convolution.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the 3x3 convolution. Defaults to 1.
        hidden_channels (int): Channels of the state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
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
        """Fuse the norms. Those at the input are replaced by a clamp."""
        self.conv1, self.conv1_hidden, self.bn2 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn2)
        self.conv2, self.bn3 = fuse_norm(self.conv2, self.bn3)
        fused = fuse_preactivation(self.bn1, [self.conv1])
        if fused is None:
            return
        self.bn1, (self.conv1,) = fused
        if self.conv1_hidden is not None:
            self.bn1_hidden, (self.conv1_hidden,) = fuse_preactivation(self.bn1_hidden, [self.conv1_hidden])
        self.relu1 = nn.Identity()
