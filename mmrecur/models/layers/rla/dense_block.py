"""Dense blocks whose bottleneck convolutions share weights along the depth.

Dense blocks are from Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017,
https://arxiv.org/abs/1608.06993. The shared weights are from Zhao, Fang and Li, *Recurrence along Depth*,
NeurIPS 2021, https://arxiv.org/abs/2110.11852, Section 3.2 and Appendix A.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation
from mmrecur.models.layers.common.stage import BlockSequence

NormLayer = Callable[[int], nn.Module]

#: Values of ``share``. Shared weights depend on the distance (lag) or the position (ordinal) of the map read.
SHARES = (None, 'lag', 'ordinal')


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution, named as in torchvision's DenseNet.

    Args:
        in_channels (int): Channels of the input.
        growth_rate (int): Channels of the output.
        own_channels (int, optional): Number of leading input channels for which the layer has weights of the
            1x1 convolution. ``forward`` receives the weights of the others. Defaults to all channels.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    #: Output channels of the 1x1 convolution for each channel of the layer's output.
    bottleneck = 4

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        own_channels: int | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        inner = self.bottleneck * growth_rate
        self.norm1 = norm_layer(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(own_channels or in_channels, inner, 1, bias=False)
        self.norm2 = norm_layer(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, growth_rate, 3, padding=1, bias=False)

    def weight(self, shared: Tensor | None) -> Tensor:
        """Return the weight of the whole 1x1 convolution.

        Args:
            shared (Tensor, optional): Shared part of the weight, shape (4 k, channels, 1, 1).

        Returns:
            Tensor: Shape (4 k, in_channels, 1, 1).
        """
        own = self.conv1.weight
        return own if shared is None else torch.cat([own, shared], dim=1)

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """Compute the new maps.

        Args:
            x (Tensor): Concatenated maps, shape (N, in_channels, H, W).
            shared (Tensor, optional): See :meth:`weight`.

        Returns:
            Tensor: Shape (N, growth_rate, H, W).
        """
        x = self.relu1(self.norm1(x))
        x = self.conv1(x) if shared is None else F.conv2d(x, self.weight(shared))
        return self.conv2(self.relu2(self.norm2(x)))

    def switch_to_deploy(self, shared: Tensor | None = None) -> None:
        """Fuse the norms. Afterwards ``forward`` takes no shared weights."""
        if shared is not None:
            weight = self.weight(shared)
            self.conv1 = nn.Conv2d(weight.size(1), weight.size(0), 1, bias=False, device=weight.device)
            self.conv1.to(weight.dtype).weight.data.copy_(weight)
        fused = fuse_preactivation(self.norm1, [self.conv1])
        if fused is not None:
            self.norm1, (self.conv1,) = fused
            self.relu1 = nn.Identity()
        self.conv1, self.norm2 = fuse_norm(self.conv1, self.norm2)


class DenseBlock(BlockSequence):
    r"""Layers that each read the input of the block and the outputs of all previous layers.

    The 1x1 convolution of layer t is a sum over the maps :math:`x^0, ..., x^{t-1}`. Its weight is a row of
    pieces :math:`W^t_0, ..., W^t_{t-1}` (Zhao et al., Equation 4). With ``share``, the layers have all pieces
    except that of the block's input in common:

    .. math::
        W^t_l &= S_{t-l} &\quad\text{(lag, Equation 9)}\\
        W^t_l &= S_l &\quad\text{(ordinal, Equation 10)}

    One convolution ``shared_conv1`` stores the shared pieces in an order in which the pieces of layer t are
    adjacent. With lags, the most distant piece comes first and a layer reads the end of the row. With
    ordinals, the first piece comes first and a layer reads the beginning. Each layer has its own norms,
    because the paper shares only the 1x1 convolutions.

    Args:
        num_layers (int): Number of layers L, at least 2 with ``share``.
        in_channels (int): Channels of the block's input.
        growth_rate (int): Channels k that each layer adds.
        share (str, optional): ``'lag'``, ``'ordinal'``, or None for a plain dense block. Defaults to None.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
        with_cp (bool): Recompute each layer in the backward pass. Defaults to False.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> block = DenseBlock(num_layers=4, in_channels=24, growth_rate=12, share='lag')
        >>> block(torch.rand(2, 24, 8, 8)).shape
        torch.Size([2, 72, 8, 8])
    """

    def __init__(
        self,
        num_layers: int,
        in_channels: int,
        growth_rate: int,
        share: str | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        check_choice('share', share, SHARES)
        check_int('num_layers', num_layers, 1 if share is None else 2)
        check_int('in_channels', in_channels, 1)
        check_int('growth_rate', growth_rate, 1)
        self.num_layers = num_layers
        self.in_channels = in_channels
        self.growth_rate = growth_rate
        self.share = share
        self.with_cp = with_cp
        for i in range(num_layers):
            layer = DenseLayer(
                in_channels + i * growth_rate,
                growth_rate,
                own_channels=in_channels if share else None,
                norm_layer=norm_layer,
            )
            self.add_module(f'denselayer{i + 1}', layer)
        # never called; it is a convolution so that initialisers find its weight
        self.shared_conv1 = (
            nn.Conv2d((num_layers - 1) * growth_rate, DenseLayer.bottleneck * growth_rate, 1, bias=False)
            if share
            else None
        )

    @property
    def layers(self) -> list[DenseLayer]:
        """list[DenseLayer]: The layers in order."""
        return [getattr(self, f'denselayer{i + 1}') for i in range(self.num_layers)]

    blocks = layers

    def shared_weight(self, index: int) -> Tensor | None:
        """Return the shared weights that a layer reads.

        Args:
            index (int): Index of the layer, from 0.

        Returns:
            Tensor, optional: Shape (4 k, index * k, 1, 1), for the outputs of layers 0, ..., index - 1 in
            this order. None for the first layer and without ``share``.
        """
        if self.shared_conv1 is None or index == 0:
            return None
        channels = index * self.growth_rate
        if self.share == 'ordinal':
            return self.shared_conv1.weight[:, :channels]
        return self.shared_conv1.weight[:, -channels:]

    def step(self, x: Tensor, index: int) -> Tensor:
        """Run one layer and append its output."""
        layer = getattr(self, f'denselayer{index + 1}')
        return torch.cat([x, layer(x, self.shared_weight(index))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: The input and all outputs, shape (N, in_channels + L k, H, W).
        """
        for index in range(self.num_layers):
            x = run_step(self, self.with_cp, self.step, x, index)
        return x

    def switch_to_deploy(self) -> None:
        """Give every layer its whole 1x1 convolution and fuse the norms."""
        for index, layer in enumerate(self.layers):
            layer.switch_to_deploy(self.shared_weight(index))
        self.shared_conv1 = None


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution and average pooling between dense blocks.

    The pooling comes before the convolution, which then costs a quarter. The result is the same, because both
    are linear and act on different axes.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm_layer(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution: (N, in_channels, H, W) to (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        return self.conv(self.pool(self.relu(self.norm(x))))

    def switch_to_deploy(self) -> None:
        """Fuse the norm and the ReLU into the convolution."""
        fused = fuse_preactivation(self.norm, [self.conv])
        if fused is not None:
            self.norm, (self.conv,) = fused
            self.relu = nn.Identity()
