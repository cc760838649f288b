"""Dense layers and transitions of the DenseNet with shared bases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.filter_basis.basis import FilterBasis
from mmrecur.models.layers.filter_basis.factorized import FactorizedConv2d
from mmrecur.models.layers.rla.dense_block import DenseLayer


class BasisDenseLayer(DenseLayer):
    """A dense layer with a factorised 3x3 convolution that appends its output to its input.

    Args:
        in_channels (int): Number of input channels.
        growth_rate (int): Number of channels to append. The 1x1 convolution has ``4 * growth_rate`` channels.
        basis (FilterBasis, optional): Shared filters of the 3x3 convolution. None gives a plain convolution.
        unique_rank (int): Number of filters that belong to this layer alone. Defaults to 0.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        basis: FilterBasis | None = None,
        unique_rank: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, growth_rate, norm_layer=norm_layer)
        if basis is not None:
            self.conv2 = FactorizedConv2d(basis, growth_rate, unique_rank, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Append the new maps to the input.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, in_channels + growth_rate, H, W).
        """
        return torch.cat([x, super().forward(x)], 1)


class PoolingTransition(nn.Module):
    """Transition between dense blocks without an activation: norm, 2x2 average pooling, 1x1 convolution.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm_layer(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / 2, W / 2), sizes rounded up.
        """
        # Pooling and the 1x1 convolution commute; in this order the convolution sees a quarter of the pixels.
        return self.conv(F.avg_pool2d(self.norm(x), 2, 2, ceil_mode=True, count_include_pad=False))

    def switch_to_deploy(self) -> None:
        """Fuse the norm into the convolution after it, in place, if possible."""
        if is_fusible(self.norm):
            scale, shift = norm_affine(self.norm)
            matrix = self.conv.weight.flatten(1).double()
            self.conv.bias = nn.Parameter((matrix @ shift.double()).to(self.conv.weight))
            self.conv.weight.mul_(scale.view(-1, 1, 1))
            self.norm = nn.Identity()
