"""Grouped convolutions over a shared basis, for ResNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.filter_basis.basis import BasisConv2d, FilterBasis


class GroupedBasisConv2d(nn.Module):
    """A grouped convolution whose first filters are its own and whose other filters are shared.

    The two parts have different numbers of groups, so they are two convolutions.

    Args:
        shared (FilterBasis): The shared filters, owned by another module.
        unique (FilterBasis): Filters that belong to this layer alone.
    """

    def __init__(self, shared: FilterBasis, unique: FilterBasis) -> None:
        super().__init__()
        self.unique = unique
        self.parts = nn.ModuleList([BasisConv2d(unique), BasisConv2d(shared)])

    @property
    def is_fused(self) -> bool:
        """bool: Whether the layer is in its inference form."""
        return not hasattr(self, 'unique')

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unique and the shared filters.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, U + S, H, W) with U unique and S shared filters.
        """
        return torch.cat([part(x) for part in self.parts], 1)

    def fuse(self, norm: nn.Module) -> nn.Module:
        """Copy the filters into plain convolutions and fuse the norm that follows, in place.

        Args:
            norm (nn.Module): The norm.

        Returns:
            nn.Module: The norm's replacement: an identity, or the norm itself if it cannot be fused.
        """
        self.parts = nn.ModuleList(part.materialise() for part in self.parts)
        del self.unique
        if not is_fusible(norm):
            return norm
        sizes = [part.out_channels for part in self.parts]
        for part, scale, shift in zip(self.parts, *(values.split(sizes) for values in norm_affine(norm))):
            part.weight.mul_(scale.view(-1, 1, 1, 1))
            part.bias = nn.Parameter(shift.clone())
        return nn.Identity()


class BasisResNeXtBlock(Bottleneck):
    """ResNeXt bottleneck with a basis in place of its 3x3 convolution and coefficients in its last 1x1.

    As in the plain block, norm and ReLU follow the 3x3 convolution, so basis and coefficients are not
    equivalent to one dense convolution.

    Args:
        channels (int): Number of input and output channels.
        inner_channels (int): Number of channels that the basis reads.
        shared (FilterBasis): The shared filters.
        unique (FilterBasis): Filters that belong to this block alone.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int,
        shared: FilterBasis,
        unique: FilterBasis,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(channels, inner_channels, channels, norm_layer=norm_layer)
        rank = len(shared.weight) + len(unique.weight)
        self.conv2 = GroupedBasisConv2d(shared, unique)
        self.bn2 = norm_layer(rank)
        self.conv3 = nn.Conv2d(rank, channels, 1, bias=False)

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions, in place."""
        if not self.conv2.is_fused:
            self.bn2 = self.conv2.fuse(self.bn2)
        super().switch_to_deploy()
