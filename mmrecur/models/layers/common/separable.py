"""Depthwise separable convolutions and the blocks of Xception, which can also read a hidden state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import shortcut_projection
from mmrecur.models.layers.common.tap import Tap

NormLayer = Callable[[int], nn.Module]


class SeparableConv(nn.Module):
    """3x3 depthwise convolution, 1x1 convolution, norm.

    Chollet, *Xception*, CVPR 2017, https://arxiv.org/abs/1610.02357. With ``hidden_channels`` it sees
    ``cat(x, h)``; both convolutions are kept in two parts, so that nothing is copied to concatenate and the
    parts for x have the shape of the plain network's.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        hidden_channels (int): Channels of the hidden state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.depthwise, self.pointwise = self._convs(in_channels, out_channels)
        self.depthwise_hidden, self.pointwise_hidden = (
            self._convs(hidden_channels, out_channels) if hidden_channels else (None, None)
        )
        self.bn = norm_layer(out_channels)

    @staticmethod
    def _convs(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
        depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        return depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Compute the convolution.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): Hidden state, shape (N, hidden_channels, H, W); None for zeros.

        Returns:
            Tensor: Shape (N, out_channels, H, W).
        """
        y = self.pointwise(self.depthwise(x))
        if h is not None:
            y += self.pointwise_hidden(self.depthwise_hidden(h))
        return self.bn(y)

    def switch_to_deploy(self) -> None:
        """Fold the norm into the 1x1 convolutions."""
        if self.pointwise_hidden is not None:
            # the norm scales both products and shifts their sum: the shift goes to the first
            folded, _ = fuse_norm(self.pointwise_hidden, self.bn)
            self.pointwise_hidden.weight.data = folded.weight.data
        self.pointwise, self.bn = fuse_norm(self.pointwise, self.bn)


class XceptionBlock(nn.Module):
    """Separable convolutions with ReLUs between them, and a shortcut around.

    Table 9 of Zhao et al., *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852: blocks
    with a shortcut may start with a ReLU and may be followed by an average pooling, which Xception has as
    a max pooling; a block without one ends with a ReLU.

    Args:
        channels (Sequence[int]): Channels of the input and of each convolution's output.
        hidden_channels (int): Channels of the hidden state that the first convolution reads, 0 for
            none. Defaults to 0.
        stride (int): Stride of pooling and shortcut. Defaults to 1.
        relu_first (bool): Whether the block starts with a ReLU. Defaults to True.
        shortcut (bool): Whether there is a shortcut. Defaults to True.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        hidden_channels: int = 0,
        stride: int = 1,
        relu_first: bool = True,
        shortcut: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.out_channels = channels[-1]
        self.stride = stride
        self.shortcut = shortcut
        # not in place: the shortcut reads the same map
        self.relu_first = nn.ReLU() if relu_first else None
        self.convs = nn.ModuleList(
            SeparableConv(cin, cout, 0 if i else hidden_channels, norm_layer)
            for i, (cin, cout) in enumerate(zip(channels, channels[1:]))
        )
        self.relu = nn.ReLU(inplace=True)
        # of the shortcut's size and place: centred on the pixels that its stride leaves
        self.pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False) if stride > 1 else None
        self.downsample = (
            shortcut_projection(channels[0], channels[-1], stride, False, norm_layer)
            if shortcut and (stride > 1 or channels[0] != channels[-1])
            else None
        )

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            h (Tensor, optional): Hidden state, shape (N, hidden_channels, H, W); None for zeros.
            tap (Tap, optional): Reads what the convolutions computed, before pooling and sum, shape
                (N, C_out, H, W). Defaults to None.

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride).
        """
        y, state = x, h
        if self.relu_first is not None:
            y, state = self.relu_first(y), None if h is None else self.relu_first(h)
        y = self.convs[0](y, state)
        for conv in self.convs[1:]:
            y = conv(self.relu(y))
        if not self.shortcut:
            y = self.relu(y)
        if tap is not None:
            tap.read(y)
        if not self.shortcut:
            return y
        output = y if self.pool is None else self.pool(y)
        return output + (x if self.downsample is None else self.downsample(x))

    def switch_to_deploy(self) -> None:
        """Fold the norms; outputs in evaluation stay the same."""
        for conv in self.convs:
            conv.switch_to_deploy()
        if self.downsample is not None:
            self.downsample[0], self.downsample[1] = fuse_norm(self.downsample[0], self.downsample[1])
