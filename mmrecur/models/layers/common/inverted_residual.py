"""The block of MobileNetV2, with and without a hidden state, and the widths of the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.attention import ChannelGate
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.common.tap import Tap


def round_channels(channels: float) -> int:
    """Round a number of channels to a multiple of 8, never down by more than a tenth.

    Args:
        channels (float): A width times a multiplier.

    Returns:
        int: The nearest multiple of 8, at least 8; the next one where the nearest is below 90 %.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def eca_kernel_size(channels: int) -> int:
    """Kernel of a MobileNetV2's efficient channel attention, as both papers' authors have it.

    Args:
        channels (int): Channels of a block's residual.

    Returns:
        int: 1 for fewer than 96 channels, else 3.
    """
    return 1 if channels < 96 else 3


def check_width_mult(width_mult: float) -> None:
    """Raise a ValueError unless the multiplier of a MobileNetV2's widths is a positive number."""
    is_number = isinstance(width_mult, (int, float)) and not isinstance(width_mult, bool)
    if not is_number or not 0 < width_mult < math.inf:
        raise ValueError(f'width_mult={width_mult!r}, allowed: a positive number')


class InvertedResidual(nn.Module):
    """Inverted residual block, 1x1 - depthwise 3x3 - 1x1, that can also read a hidden state.

    `Sandler et al. 2018 <https://arxiv.org/abs/1801.04381>`_: ReLU6 after the first two convolutions,
    nothing after the last; the input is added where the block keeps its shape. With ``hidden_channels``
    the depthwise and the last convolution see ``cat(expanded x, h)`` (Zhao et al. 2021, Recurrence along
    Depth, Appendix B.2.1). A depthwise convolution and a norm treat each channel alone and the last
    convolution sums over channels, so the state has layers of its own, ``conv2_hidden``,
    ``bn2_hidden`` and ``conv3_hidden``, whose result is added: nothing is copied to concatenate, and the
    others have the shapes of the plain network's.

    Names are those of :class:`Bottleneck`, whose three convolutions these are with other widths.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels of the depthwise convolution. The first convolution is left out
            where they equal ``in_channels``.
        out_channels (int): Channels of the output.
        stride (int): Stride of the depthwise convolution. Defaults to 1.
        hidden_channels (int): Channels of the hidden state, 0 for none. Defaults to 0.
        attention (ChannelGate, optional): Channel attention on the residual. Defaults to None.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.

    Example:
        >>> import torch
        >>> block = InvertedResidual(16, 96, 24, stride=2, hidden_channels=32)
        >>> block(torch.rand(1, 16, 8, 8), torch.rand(1, 32, 8, 8)).shape
        torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        hidden_channels: int = 0,
        attention: ChannelGate | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.has_shortcut = stride == 1 and in_channels == out_channels
        expands = inner_channels != in_channels
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False) if expands else None
        self.bn1 = norm_layer(inner_channels) if expands else None
        self.conv2 = _depthwise(inner_channels, stride)
        self.bn2 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.conv2_hidden = self.bn2_hidden = self.conv3_hidden = None
        if hidden_channels:
            self.conv2_hidden = _depthwise(hidden_channels, stride)
            self.bn2_hidden = norm_layer(hidden_channels)
            self.conv3_hidden = nn.Conv2d(hidden_channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU6(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): Hidden state, shape (N, hidden_channels, H, W); None stands for zeros.
            tap (Tap, optional): Reads the residual (after attention). Defaults to None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        inner = x if self.conv1 is None else self.relu(self.bn1(self.conv1(x)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        residual = self.conv3(inner)
        if self.conv3_hidden is not None:
            residual += self._zeros_read(x) if h is None else self._state_read(h)
        residual = self.bn3(residual)
        if self.attention is not None:
            residual = self.attention(residual)
        if tap is not None:
            tap.read(residual)
        # a sum in place would change what the readout keeps for its gradient
        return residual + x if self.has_shortcut else residual

    def _state_read(self, h: Tensor) -> Tensor:
        """The state's part of the last convolution's sum."""
        return self.conv3_hidden(self.relu(self.bn2_hidden(self.conv2_hidden(h))))

    def _zeros_read(self, like: Tensor) -> Tensor:
        """The part of a state of zeros, shape (1, out_channels, 1, 1).

        The norm shifts zeros, so it is not zero, but the same in every place: two are enough, the least
        from which batch norms take statistics.
        """
        channels = self.conv2_hidden.in_channels
        zeros = like.new_zeros((1, channels, 2 * self.stride, 1))
        return self._state_read(zeros)[:, :, :1]

    def switch_to_deploy(self, reads_zeros: bool = False) -> None:
        """Fold the norms into the convolutions; outputs in evaluation stay the same.

        Args:
            reads_zeros (bool): Whether the block's state is always zeros, as in a network's first
                block; its part is then a bias. Defaults to False.
        """
        if self.conv1 is not None:
            self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
        if self.conv3_hidden is not None:
            self.conv2_hidden, self.bn2_hidden = fuse_norm(self.conv2_hidden, self.bn2_hidden)
        self.conv3, self.conv3_hidden, self.bn3 = fuse_norm_of_sum(self.conv3, self.conv3_hidden, self.bn3)
        if reads_zeros and self.conv3_hidden is not None and self.conv3.bias is not None:
            with torch.no_grad():
                self.conv3.bias += self._zeros_read(self.conv3.weight).flatten()
            self.conv2_hidden = self.bn2_hidden = self.conv3_hidden = None


def _depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
