"""ResNeXt-Shared: ResNeXts whose grouped convolutions share filter bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.resnet_shared import ResNetShared
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY, BasisStage
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.filter_basis.basis import BasisConv2d, FilterBasis
from mmrecur.registry import MODELS


class GroupedBasisConv2d(nn.Module):
    """The maps of a grouped basis: a convolution's own filters, then the shared ones.

    The two have different groups, so they are two convolutions.

    Args:
        shared (FilterBasis): Shared filters; the module does not own them.
        unique (FilterBasis): Its own.
    """

    def __init__(self, shared: FilterBasis, unique: FilterBasis) -> None:
        super().__init__()
        self.unique = unique
        self.parts = nn.ModuleList([BasisConv2d(unique), BasisConv2d(shared)])

    @property
    def folded(self) -> bool:
        """bool: Whether it is in its inference form."""
        return not hasattr(self, 'unique')

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, U + S, H, W).
        """
        return torch.cat([part(x) for part in self.parts], 1)

    def fold(self, norm: nn.Module) -> nn.Module:
        """Turn into the inference form, with the norm that follows folded where it can be.

        Args:
            norm (nn.Module): The norm.

        Returns:
            nn.Module: What is left of the norm.
        """
        self.parts = nn.ModuleList(part.deployed() for part in self.parts)
        del self.unique
        if not is_fusible(norm):
            return norm
        sizes = [part.out_channels for part in self.parts]
        for part, scale, shift in zip(self.parts, *(values.split(sizes) for values in norm_affine(norm))):
            part.weight.mul_(scale.view(-1, 1, 1, 1))
            part.bias = nn.Parameter(shift.clone())
        return nn.Identity()


class BasisResNeXtBlock(Bottleneck):
    """ResNeXt bottleneck whose 3x3 convolution is a basis and whose last 1x1 holds the coefficients.

    Norm and ReLU stand between the two as in the plain block, so they are not one dense convolution in
    evaluation.

    Args:
        channels (int): Channels of input and output.
        inner_channels (int): Channels of what the basis is applied to.
        shared (FilterBasis): Shared filters.
        unique (FilterBasis): The block's own.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
        """Fold the norms into the convolutions; outputs in evaluation stay the same."""
        if not self.conv2.folded:
            self.bn2 = self.conv2.fold(self.bn2)
        super().switch_to_deploy()


@MODELS.register_module()
class ResNeXtShared(ResNetShared):
    """ResNeXt whose grouped convolutions share filter bases.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066, Table 2: ResNeXt50-S64U4, 32x4d, in its CIFAR form. In the
    blocks of stage i but the first, ``shared_rank * 2**i`` shared filters and ``unique_rank * 2**i`` of the
    block's own take the place of the 3x3 convolution; the last 1x1 holds the coefficients. A group has as
    many shared filters as filters in the plain network, or ``unique_rank`` unique ones: that gives the
    parameters and multiply-adds that the paper reports.

    Args:
        depth (int): 50, 101 or 152. Defaults to 50.
        shared_rank (int): Shared filters in the first stage, ``base_width`` times a divisor of
            ``groups * base_width``; 0 for a plain network. Defaults to 64.
        unique_rank (int): Filters of its own of each block in the first stage, at least one. Defaults
            to 4.
        groups (int): Groups of the plain block's 3x3 convolution. Defaults to 32.
        base_width (int): Channels of a group in the first stage. Defaults to 4.
        stem (str): See :class:`ResNetShared`. Defaults to 'cifar'.
        loss_ortho, base_channels, strides, in_channels, out_indices, frozen_stages, norm_cfg, norm_eval, \
        with_cp, init_cfg: See :class:`ResNetShared`.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import ResNeXtShared
        >>> model = ResNeXtShared(50, shared_rank=64, unique_rank=4, out_indices=(3,)).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 2048, 4, 4)]
    """

    def __init__(
        self,
        depth: int = 50,
        shared_rank: int = 64,
        unique_rank: int = 4,
        groups: int = 32,
        base_width: int = 4,
        stem: str = 'cifar',
        loss_ortho: Mapping | None = ORTHOGONALITY,
        base_channels: int = 64,
        strides: Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_choice('depth', depth, [50, 101, 152])
        check_int('shared_rank', shared_rank, 0)
        check_int('unique_rank', unique_rank, 1)
        check_int('groups', groups, 1)
        check_int('base_width', base_width, 1)
        width = groups * base_width
        if shared_rank % base_width or (shared_rank and width % (shared_rank // base_width)):
            raise ValueError(
                f'shared_rank={shared_rank!r}, allowed: a multiple of base_width={base_width}, by a divisor '
                f'of groups * base_width = {width}'
            )
        self._grouping = (shared_rank, unique_rank, groups, base_width)
        super().__init__(
            depth,
            share='single' if shared_rank else None,
            stem=stem,
            loss_ortho=loss_ortho,
            base_channels=base_channels,
            strides=strides,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )

    def _make_bottleneck(
        self, index: int, in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer
    ) -> BasisStage:
        shared_rank, unique_rank, groups, base_width = self._grouping
        scale, inner = 2**index, groups * base_width * 2**index
        bases = {}
        if shared_rank:
            bases['conv2'] = FilterBasis(shared_rank * scale, inner, groups=shared_rank // base_width)
        blocks: list[nn.Module] = []
        for i in range(self.arch_settings[self.depth][index]):
            if i == 0 or not bases:
                cin, block_stride = (in_channels, stride) if i == 0 else (out_channels, 1)
                blocks.append(
                    Bottleneck(cin, inner, out_channels, block_stride, groups=groups, norm_layer=norm_layer)
                )
                continue
            unique = FilterBasis(unique_rank * scale, inner, groups=scale)
            blocks.append(BasisResNeXtBlock(out_channels, inner, bases['conv2'], unique, norm_layer))
        return BasisStage(blocks, bases, self.with_cp)
