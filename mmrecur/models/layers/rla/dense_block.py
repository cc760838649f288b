"""Dense blocks whose bottleneck convolutions share weights along the depth.

Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017, https://arxiv.org/abs/1608.06993; the
sharing by Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852,
Section 3.2 and Appendix A.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation
from mmrecur.models.layers.common.stage import BlockSequence

NormLayer = Callable[[int], nn.Module]

#: What the shared weights of an earlier layer's output depend on: its distance or its place.
SHARES = (None, 'lag', 'ordinal')


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution, named as in torchvision's DenseNet.

    Args:
        in_channels (int): Channels of the input, all of which ``norm1`` sees.
        growth_rate (int): Channels of the output.
        own_channels (int, optional): Leading channels of the input whose weights in the 1x1 convolution
            are the layer's own; those of the others are given to ``forward``. Defaults to all.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
        """The weight of the whole 1x1 convolution.

        Args:
            shared (Tensor, optional): Its part that layers share, shape (4 k, channels, 1, 1).

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
        """Fold the norms; from now on the layer is called without shared weights."""
        if shared is not None:
            weight = self.weight(shared)
            self.conv1 = nn.Conv2d(weight.size(1), weight.size(0), 1, bias=False, device=weight.device)
            self.conv1.to(weight.dtype).weight.data.copy_(weight)
        folded = fuse_preactivation(self.norm1, [self.conv1])
        if folded is not None:
            self.norm1, (self.conv1,) = folded
            self.relu1 = nn.Identity()
        self.conv1, self.norm2 = fuse_norm(self.conv1, self.norm2)


class DenseBlock(BlockSequence):
    r"""Layers each of which reads the block's input and the outputs of all layers before it.

    The 1x1 convolution of layer t acts on the maps :math:`x^0, ..., x^{t-1}` separately: its weight is a row
    of pieces :math:`W^t_0, ..., W^t_{t-1}` (Zhao et al., Equation 4). With sharing, all but that of the
    block's input come from one row of pieces that the layers have in common:

    .. math::
        W^t_l &= S_{t-l} &\quad\text{(lag, Equation 9)}\\
        W^t_l &= S_l &\quad\text{(ordinal, Equation 10)}

    It is kept in one convolution ``shared_conv1``, ordered such that what layer t needs stands side by side:
    with lags the most distant piece is first and a layer reads the end of the row, with ordinals the
    first is first and it reads the beginning. Norms are a layer's own (the paper shares the 1x1
    convolutions only), so a layer's sum is no update of the sum before it.

    Args:
        num_layers (int): Layers L in the block; at least 2 with sharing.
        in_channels (int): Channels of the block's input.
        growth_rate (int): Channels k that each layer adds.
        share (str, optional): ``'lag'``, ``'ordinal'`` or None. Defaults to None.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
        # never called: it holds a weight where initialisers find it
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
        """What a layer reads of the shared weights.

        Args:
            index (int): Index of the layer from 0.

        Returns:
            Tensor, optional: Shape (4 k, index * k, 1, 1), for the outputs of layers 0, ..., index - 1 in
            this order. None for the first layer and without sharing.
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
        """Give every layer its whole 1x1 convolution and fold the norms."""
        for index, layer in enumerate(self.layers):
            layer.switch_to_deploy(self.shared_weight(index))
        self.shared_conv1 = None


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution and average pooling between dense blocks.

    The pooling is computed before the convolution: both are linear and act on different axes, so the
    order changes nothing but the work, which is a quarter.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
        """Fold the norm and the ReLU."""
        folded = fuse_preactivation(self.norm, [self.conv])
        if folded is not None:
            self.norm, (self.conv,) = folded
            self.relu = nn.Identity()
