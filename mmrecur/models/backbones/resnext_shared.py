"""ResNeXt-Shared, a ResNeXt whose grouped convolutions share filter bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.resnet_shared import ResNetShared
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.filter_basis import BasisResNeXtBlock, BasisStage, FilterBasis
from mmrecur.registry import MODELS


@MODELS.register_module()
class ResNeXtShared(ResNetShared):
    """ResNeXt whose grouped convolutions share filter bases.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066, Table 2: ResNeXt50-S64U4 (32x4d) for CIFAR.

    The first block of each stage is that of the plain ResNeXt. In the other blocks of stage i, counted from
    0, a basis replaces the 3x3 convolution: ``shared_rank * 2**i`` filters that the blocks share and
    ``unique_rank * 2**i`` filters that belong to the block. The last 1x1 convolution holds the coefficients.
    A group has as many shared filters as the plain convolution has filters per group, or ``unique_rank``
    unique filters. This reproduces the parameters and multiply-adds that the paper reports.

    Args:
        depth (int): 50, 101 or 152. Defaults to 50.
        shared_rank (int): Number of shared filters in the first stage: ``base_width`` times a divisor of
            ``groups * base_width``. 0 gives a plain network. Defaults to 64.
        unique_rank (int): Number of filters in the first stage that belong to a single block, at least 1.
            Defaults to 4.
        groups (int): Number of groups of the plain 3x3 convolution. Defaults to 32.
        base_width (int): Number of channels per group in the first stage. Defaults to 4.
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
                f'shared_rank={shared_rank!r}, allowed: a multiple of base_width={base_width} by a divisor '
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
