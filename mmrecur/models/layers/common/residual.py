"""Parts of a residual network: bottleneck block, deep stem, shortcut."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.attention import CBAM, ChannelGate
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.modes import is_traced
from mmrecur.models.layers.common.tap import Tap

NormLayer = Callable[[int], nn.Module]


class DeepStem(nn.Sequential):
    """Three 3x3 convolutions in the place of the 7x7 one (ResNet-D).

    `He et al. 2019, Bag of Tricks <https://arxiv.org/abs/1812.01187>`_. Halves the resolution; the max
    pooling is the network's.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Output channels; the two hidden convolutions have half of them.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
        """Fold the norms."""
        for i in range(0, len(self), 3):
            self[i], self[i + 1] = fuse_norm(self[i], self[i + 1])


def shortcut_projection(
    in_channels: int, out_channels: int, stride: int, avg_down: bool, norm_layer: NormLayer
) -> nn.Sequential:
    """Projection on the shortcut of a block that changes resolution or width.

    Args:
        in_channels (int): Channels of the block's input.
        out_channels (int): Channels of its output.
        stride (int): The block's stride.
        avg_down (bool): Average pooling and a 1x1 convolution of stride 1 (ResNet-D) instead of a
            1x1 convolution with the stride.
        norm_layer (Callable): Builds a norm from a channel count.

    Returns:
        nn.Sequential: ``conv, norm``, or ``pool, conv, norm`` with ``avg_down``.
    """
    layers: list[nn.Module] = []
    if avg_down:
        # also at stride 1, so that the parameters of all blocks have the same names
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        layers.append(nn.Identity() if stride == 1 else pool)
        stride = 1
    layers += [nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm_layer(out_channels)]
    return nn.Sequential(*layers)


def gated_pointwise(conv: nn.Conv2d | None, x: Tensor, gate: Tensor) -> Tensor:
    """A 1x1 convolution of a gated map, with the gate multiplied into the weights.

    Args:
        conv (nn.Conv2d, optional): Convolution of stride 1, C -> k channels; None for the gated map.
        x (Tensor): Shape (N, C, H, W).
        gate (Tensor): Factor of every channel, shape (N, C).

    Returns:
        Tensor: ``conv(gate * x)``, shape (N, k, H, W), in the layout of x.
    """
    if conv is None:
        return x * gate.unsqueeze(-1).unsqueeze(-1)
    weights = conv.weight.flatten(1) * gate.unsqueeze(1)
    columns = x.flatten(2)
    if type(x) is Tensor and not x.is_contiguous():
        read = torch.matmul(columns.transpose(1, 2), weights.transpose(1, 2))
        read = (read if conv.bias is None else read + conv.bias).transpose(1, 2)
    else:
        read = torch.matmul(weights, columns)
        read = read if conv.bias is None else read + conv.bias.unsqueeze(-1)
    # not unflatten, which ONNX takes for one of a fixed batch
    return read.reshape(x.size(0), conv.out_channels, x.size(2), x.size(3))


class Bottleneck(nn.Module):
    """Bottleneck residual block, 1x1 - 3x3 - 1x1, that can also read a hidden state.

    `He et al. 2016 <https://arxiv.org/abs/1512.03385>`_, its stride on the 3x3 convolution. With
    ``hidden_channels`` the first convolution sees ``cat(x, h)`` (Zhao et al. 2021, Recurrence along
    Depth, Section 3.3). Its weight is kept as two, ``conv1`` for x and ``conv1_hidden`` for h, and their
    products are added: nothing is copied to concatenate, and ``conv1`` has the shape of the plain
    network's.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the output.
        stride (int): Stride of the block, on the 3x3 convolution. Defaults to 1.
        dilation (int): Dilation of the 3x3 convolution. Defaults to 1.
        groups (int): Its groups. Defaults to 1.
        hidden_channels (int): Channels of the hidden state, 0 for none. Defaults to 0.
        attention (nn.Module, optional): Attention on the residual, a :class:`ChannelGate`, :class:`CBAM` or
            any layer that keeps the shape. Defaults to None.
        avg_down (bool): ResNet-D shortcut. Defaults to False.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
        stride_first (bool): Put the stride on the first convolution instead, where networks converted
            from Caffe have it. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        hidden_channels: int = 0,
        attention: nn.Module | None = None,
        avg_down: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, first, bias=False)
        self.conv1_hidden = (
            nn.Conv2d(hidden_channels, inner_channels, 1, first, bias=False) if hidden_channels else None
        )
        self.bn1 = norm_layer(inner_channels)
        self.conv2 = nn.Conv2d(
            inner_channels,
            inner_channels,
            3,
            second,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn2 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention
        self.gates_products = False  # the inference form of a block with channel attention
        self.downsample = (
            shortcut_projection(in_channels, out_channels, stride, avg_down, norm_layer)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): Hidden state, shape (N, hidden_channels, H, W); None stands for zeros.
            tap (Tap, optional): Reads one of the maps of the output's resolution: the ``'output'``
                itself, the ``'residual'`` (after attention), the ``'shortcut'``, or ``'inner'``, the
                input of the last convolution. Defaults to None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        inner = self.conv1(x)
        if h is not None:
            inner += self.conv1_hidden(h)
        inner = self.relu(self.bn1(inner))
        inner = self.relu(self.bn2(self.conv2(inner)))
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.gates_products:
            return self._gated(inner, shortcut, tap)
        residual = self.bn3(self.conv3(inner))
        if self.attention is not None:
            residual = self.attention(residual)
        source = None if tap is None else tap.source
        if source == 'residual':
            tap.read(residual)
            # what was read is kept: a sum in place would turn it into the output
            return self.relu(residual + shortcut)
        residual += shortcut
        output = self.relu(residual)
        if tap is not None:
            tap.read({'output': output, 'shortcut': shortcut, 'inner': inner}[source])
        return output

    def _gated(self, inner: Tensor, shortcut: Tensor, tap: Tap | None) -> Tensor:
        """The end of the block in the inference form, where the gated residual is never built.

        The gate needs the mean of the last convolution's output, which is that of the mean of its input;
        the sum with the shortcut and the readout's weights take it in.
        """
        weight = self.conv3.weight.flatten(1)
        gate = self.attention.gate(F.linear(inner.mean((2, 3)), weight, self.conv3.bias))
        residual = self.conv3(inner)
        if tap is not None and tap.source == 'residual':
            tap.value = gated_pointwise(tap.readout, residual, gate)
        gate = gate.unsqueeze(-1).unsqueeze(-1)
        # a trace serves both grad modes, and ONNX knows no results in given places
        in_place = not is_traced(residual) and not torch.is_grad_enabled()
        output = self.relu(torch.addcmul(shortcut, residual, gate, out=residual if in_place else None))
        if tap is not None and tap.source != 'residual':
            tap.read({'output': output, 'shortcut': shortcut, 'inner': inner}[tap.source])
        return output

    def residual_conv(self) -> nn.Conv2d | None:
        """In the inference form the convolution whose output is the residual; None if none is."""
        ends = self.attention is None and isinstance(self.bn3, nn.Identity)
        return self.conv3 if ends else None

    def switch_to_deploy(self) -> None:
        """Fold the norms into the convolutions; outputs in evaluation stay the same."""
        self.conv1, self.conv1_hidden, self.bn1 = fuse_norm_of_sum(self.conv1, self.conv1_hidden, self.bn1)
        self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
        self.conv3, self.bn3 = fuse_norm(self.conv3, self.bn3)
        self.gates_products = isinstance(self.attention, ChannelGate) and isinstance(self.bn3, nn.Identity)
        if isinstance(self.attention, CBAM):
            self.attention.switch_to_deploy()
        if self.downsample is not None:
            self.downsample[-2], self.downsample[-1] = fuse_norm(self.downsample[-2], self.downsample[-1])
