"""Residual blocks that read the recurrent state of RLA, and the readout of their inner maps.

Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Section 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.inverted_residual import InvertedResidual, depthwise_conv
from mmrecur.models.layers.common.parallel import is_sharded
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer


class Tap:
    """Reads one of the inner maps of a block.

    A block returns only its output, so that forward hooks (those of Grad-CAM, for example) see a single map.
    The caller passes a tap to read another map.

    Args:
        source (str): Name of the map, see the block's ``forward``. Defaults to 'residual'.
        readout (nn.Module, optional): Layer applied to the map. Defaults to None, the map itself.

    Attributes:
        value (Tensor, optional): The result, available after the block has run.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import RLABottleneck, Tap
        >>> tap = Tap('residual', torch.nn.Conv2d(64, 8, 1))
        >>> RLABottleneck(64, 16, 64)(torch.rand(1, 64, 7, 7), tap=tap).shape, tap.value.shape
        (torch.Size([1, 64, 7, 7]), torch.Size([1, 8, 7, 7]))
    """

    def __init__(self, source: str = 'residual', readout: nn.Module | None = None) -> None:
        self.source = source
        self.readout = readout
        self.value: Tensor | None = None

    def read(self, **maps: Tensor) -> None:
        """Read the map called ``source``."""
        x = maps[self.source]
        self.value = x if self.readout is None else self.readout(x)


def with_zero_gradients(x: Tensor, *convs: nn.Conv2d) -> Tensor:
    """Return ``x`` unchanged, but give the weights of unused convolutions a gradient of zeros.

    DistributedDataParallel waits for the gradient of every parameter, also of those that would read a state
    of zeros. FSDP2 does not wait; weights that it has sharded are skipped.

    Args:
        x (Tensor): Any map of the graph.
        *convs (nn.Conv2d): The convolutions.

    Returns:
        Tensor: The same values.
    """
    for conv in convs:
        if not is_sharded(conv.weight):
            x = x + 0 * conv.weight.sum()
    return x


class RLABottleneck(Bottleneck):
    """Bottleneck block whose first convolution sees ``cat(x, h)``.

    The weight of the first convolution is stored in two parts, ``conv1`` for x and ``conv1_hidden`` for h,
    whose products are added. This avoids the concatenation, and ``conv1`` keeps the shape that it has in the
    plain network.

    Args:
        in_channels, inner_channels, out_channels: See :class:`Bottleneck`.
        hidden_channels (int): Channels k of the state, 0 for a block that ignores it. Defaults to 0.
        **kwargs: Other arguments of :class:`Bottleneck`.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, inner_channels, out_channels, **kwargs)
        self.conv1_hidden = (
            nn.Conv2d(hidden_channels, inner_channels, 1, self.conv1.stride, bias=False)
            if hidden_channels
            else None
        )
        # the two parts of one convolution are neighbours, so a seed draws both before the other layers
        for name in [name for name in self._modules if name not in ('conv1', 'conv1_hidden')]:
            self._modules[name] = self._modules.pop(name)

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): State, shape (N, hidden_channels, H, W). None stands for zeros.
            tap (Tap, optional): Reads the ``'output'``, the ``'residual'`` (after attention), the
                ``'shortcut'`` or ``'inner'``, the input of the last convolution. All have the resolution of
                the output. Defaults to None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride), sizes rounded up.
        """
        inner = self.conv1(x)
        if self.conv1_hidden is not None:
            if h is not None:
                inner = inner + self.conv1_hidden(h)
            elif self.training:
                inner = with_zero_gradients(inner, self.conv1_hidden)
        inner = self.relu(self.bn1(inner))
        inner = self.relu(self.bn2(self.conv2(inner)))
        residual = self.bn3(self.conv3(inner))
        if self.attention is not None:
            residual = self.attention(residual)
        shortcut = x if self.downsample is None else self.downsample(x)
        output = self.relu(residual + shortcut)
        if tap is not None:
            tap.read(output=output, residual=residual, shortcut=shortcut, inner=inner)
        return output

    def residual_conv(self) -> nn.Conv2d | None:
        """Return the convolution whose output is the residual, None if another layer follows it."""
        is_last = self.attention is None and isinstance(self.bn3, nn.Identity)
        return self.conv3 if is_last else None

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        self.conv1, self.conv1_hidden, self.bn1 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn1)
        super().switch_to_deploy()

    def assume_zero_state(self) -> None:
        """Drop the convolution of the state, which is always zero in the first block of a network."""
        self.conv1_hidden = None


class RLAInvertedResidual(InvertedResidual):
    """Inverted residual block whose depthwise and last convolution see ``cat(expanded x, h)``.

    Appendix B.2.1 of the paper. The depthwise convolution and its norm treat each channel separately, and
    the last convolution sums over channels. The state therefore has layers of its own, ``conv2_hidden``,
    ``bn2_hidden`` and ``conv3_hidden``, whose result is added. This avoids the concatenation, and the other
    layers keep the shapes of the plain network.

    Args:
        in_channels, inner_channels, out_channels: See :class:`InvertedResidual`.
        stride (int): Stride of the depthwise convolution. Defaults to 1.
        hidden_channels (int): Channels k of the state, 0 for a block that ignores it. Defaults to 0.
        attention (ChannelGate, optional): Channel attention on the residual. Defaults to None.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import RLAInvertedResidual
        >>> block = RLAInvertedResidual(16, 96, 24, stride=2, hidden_channels=32)
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
        attention: nn.Module | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, inner_channels, out_channels, stride, attention, norm_layer)
        self.conv2_hidden = self.bn2_hidden = self.conv3_hidden = None
        if hidden_channels:
            self.conv2_hidden = depthwise_conv(hidden_channels, stride)
            self.bn2_hidden = norm_layer(hidden_channels)
            self.conv3_hidden = nn.Conv2d(hidden_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): State, shape (N, hidden_channels, H, W). None stands for zeros.
            tap (Tap, optional): Reads the ``'residual'`` (after attention). Defaults to None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride), sizes rounded up.
        """
        inner = x if self.conv1 is None else self.relu(self.bn1(self.conv1(x)))
        residual = self.conv3(self.relu(self.bn2(self.conv2(inner))))
        if self.conv3_hidden is not None:
            residual = residual + (self._zero_state_response(x) if h is None else self._state_response(h))
        residual = self.bn3(residual)
        if self.attention is not None:
            residual = self.attention(residual)
        if tap is not None:
            tap.read(residual=residual)
        return residual + x if self.has_shortcut else residual

    def _state_response(self, h: Tensor) -> Tensor:
        """Compute the summand of the last convolution that depends on the state."""
        return self.conv3_hidden(self.relu(self.bn2_hidden(self.conv2_hidden(h))))

    def _zero_state_response(self, like: Tensor) -> Tensor:
        """Compute the response to a state of zeros, shape (1, out_channels, 1, 1).

        The norm shifts zeros, so the response is not zero, but it is the same at every pixel. Two pixels are
        the fewest from which a batch norm takes statistics. Computing all of them would make a training
        step of RLA-MobileNetV2 8 % slower.
        """
        channels = self.conv2_hidden.in_channels
        zeros = like.new_zeros((1, channels, 2 * self.stride, 1))
        return self._state_response(zeros)[:, :, :1]

    def residual_conv(self) -> None:
        """Return None: the residual is a sum of two convolutions."""
        return None

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        if self.conv3_hidden is not None:
            self.conv2_hidden, self.bn2_hidden = fuse_norm(self.conv2_hidden, self.bn2_hidden)
        self.conv3, self.conv3_hidden, self.bn3 = fuse_norm_of_sum(self.conv3, self.conv3_hidden, self.bn3)
        super().switch_to_deploy()

    def assume_zero_state(self) -> None:
        """Turn the response to a state of zeros into a bias; norms must have been fused.

        The state is always zero in the first block of a network. A block whose norms cannot be fused stays
        as it is.
        """
        if self.conv3_hidden is not None and self.conv3.bias is not None:
            with torch.no_grad():
                self.conv3.bias += self._zero_state_response(self.conv3.weight).flatten()
            self.conv2_hidden = self.bn2_hidden = self.conv3_hidden = None
