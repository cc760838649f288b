"""ResNet-Shared, a ResNet whose blocks share filter bases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.resnet_sharing import SHARES, StageSharing, basic_sharing, bottleneck_sharing
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY, SharedBasisBackbone
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import BasicBlock, Bottleneck, NormLayer, conv3x3
from mmrecur.models.layers.filter_basis import BasisStage, FactorizedConv2d, FilterBasis, share_convolutions
from mmrecur.registry import MODELS


@MODELS.register_module()
class ResNetShared(SharedBasisBackbone):
    """ResNet whose blocks share filter bases.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066. The defaults are the paper's networks: the first block of each
    stage is that of the plain ResNet, and the other blocks share as follows:

    - Basic blocks (depths 18 and 34 and the CIFAR-10 depths) have factorised convolutions
      (:class:`FactorizedConv2d`). In stage i, counted from 0, all blocks share ``shared_rank * 2**i``
      filters, and each convolution adds ``unique_rank * 2**i`` filters of its own. The paper's ResNet34-S48U1
      has ``shared_rank=48`` and ``unique_rank=1``.
    - Bottlenecks (depths 50, 101 and 152) share whole convolutions: the 3x3 one (``share='single'``), the 3x3
      and the last 1x1 one (``'double'``), or all three (``'all'``). Norms are never shared.

    Options beyond the paper trade parameters for accuracy in each stage. An option *per stage* takes one
    value for all stages, or a sequence with one value for each stage of the architecture. A network that is
    built under ``torch.device('meta')`` takes no memory and still shows how many parameters a choice has.

    Parameters have the names of torchvision's ResNet. The bases are named like ``layer1.basis.conv2.weight``,
    and the parts of a factorised convolution ``layer1.1.conv1.unique``, ``.norm`` and ``.coefficients``. With
    ``share=None`` the network is the plain ResNet.

    Args:
        depth (int): 18, 34, 50, 101 or 152; or 20, 32, 44, 56 or 110 for a CIFAR-10 network of three stages
            with 16, 32 and 64 channels and parameter-free shortcuts.
        shared_rank (int or Sequence[int], optional): Number of shared filters, for basic blocks only. An
            integer is the number in the first stage and doubles from stage to stage; a sequence holds the
            number in each stage. 0 gives a plain network or a plain stage. Defaults to None, the paper's
            value: 48; 32 for depths 18 and 34 with ``stem='cifar'``; 16 for the CIFAR-10 depths.
        unique_rank (int or Sequence[int], optional): Number of filters that belong to a single convolution,
            for basic blocks only. An integer doubles as that of ``shared_rank``. Defaults to None, the
            paper's 1.
        bases (int or Sequence[int], optional): Number of bases, per stage, for basic blocks only. With 2, the
            first convolutions of the blocks share one basis and the second ones another (marked with a
            double dagger in the paper). Defaults to None, the paper's value: 1 for depths 18 and 34 with
            ``stem='cifar'``, else 2.
        share (str or Sequence, optional): Convolutions that the blocks share, per stage, see above; basic
            blocks allow only ``'single'`` and None. None gives a plain network or a plain stage. Defaults to
            'single'.
        share_first (bool or Sequence[bool]): Whether the first block of a stage shares too, per stage. It
            then shares the convolutions whose shape is that of the other blocks, each at its own stride:
            ``conv2`` and ``conv3`` of bottlenecks, ``conv2`` of basic blocks, and ``conv1`` of basic blocks
            where the width does not change. Plain stages ignore it. Defaults to False.
        relaxation_rank (int or Sequence[int]): Rank of the residual that each block adds to each convolution
            that it shares (:class:`LowRankResidual`), per stage, for bottlenecks only. At full rank (the
            number of inner channels; larger values are reduced to it) the blocks can have any filters. The
            inference form contains no residuals. Plain stages ignore it. Defaults to 0, no residuals.
        stem (str, optional): ``'imagenet'``: a 7x7 convolution and max pooling, both of stride 2.
            ``'cifar'``: a 3x3 convolution of stride 1. Defaults to None: 'cifar' for the CIFAR-10 depths,
            else 'imagenet'.
        basis_norm (bool): Use a norm between basis and coefficients of factorised convolutions. Defaults to
            True.
        loss_ortho (Mapping, optional): Auxiliary loss that keeps the bases orthonormal. It needs
            ``custom_hooks=[dict(type='mmrecur.AuxiliaryLossHook')]``. None disables it. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        base_channels (int, optional): Number of stem channels. Stage i has ``base_channels * 2**i`` output
            channels, or four times as many with bottlenecks. Defaults to None: 16 for the CIFAR-10 depths,
            else 64.
        strides (Sequence[int], optional): Stride of each stage. Defaults to None: 1 for the first stage, 2
            for the others.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return, 0 for the first. Later stages are not built.
            Defaults to None, all stages.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            bases. Defaults to -1.
        norm_cfg (dict, optional): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode during training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. They do not affect the
            bases, which start orthonormal. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import ResNetShared
        >>> model = ResNetShared(34, shared_rank=48, unique_rank=1, bases=2).eval()
        >>> for feature in model(torch.rand(1, 3, 64, 64)):
        ...     print(tuple(feature.shape))
        (1, 64, 16, 16)
        (1, 128, 8, 8)
        (1, 256, 4, 4)
        (1, 512, 2, 2)
    """

    #: Number of blocks in each stage.
    arch_settings = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        20: (3, 3, 3),
        32: (5, 5, 5),
        44: (7, 7, 7),
        56: (9, 9, 9),
        110: (18, 18, 18),
    }
    architectures = {
        'resnet-shared': {},
        **{f'resnet{depth}-shared': dict(depth=depth) for depth in (18, 34, 50, 101, 152)},
        **{f'resnet{depth}-shared-double': dict(depth=depth, share='double') for depth in (50, 101, 152)},
        **{f'resnet{depth}-shared-all': dict(depth=depth, share='all') for depth in (50, 101, 152)},
    }

    def __init__(
        self,
        depth: int,
        shared_rank: int | Sequence[int] | None = None,
        unique_rank: int | Sequence[int] | None = None,
        bases: int | Sequence[int] | None = None,
        share: str | Sequence[str | None] | None = 'single',
        share_first: bool | Sequence[bool] = False,
        relaxation_rank: int | Sequence[int] = 0,
        stem: str | None = None,
        basis_norm: bool = True,
        loss_ortho: Mapping | None = ORTHOGONALITY,
        base_channels: int | None = None,
        strides: Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_choice('depth', depth, self.arch_settings)
        num_stages = len(self.arch_settings[depth])
        super().__init__(
            num_stages,
            loss_ortho,
            in_channels=in_channels,
            out_indices=range(num_stages) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.depth = depth
        self.is_basic = depth in (18, 34) or num_stages == 3
        self.expansion = 1 if self.is_basic else 4
        self._choose_stem(stem, base_channels)
        check_flag(basis_norm=basis_norm)
        self.basis_norm = basis_norm
        ranks = dict(shared_rank=shared_rank, unique_rank=unique_rank, bases=bases)
        self.sharing = self._resolve_sharing(share, share_first, relaxation_rank, ranks)
        self.share = share if any(stage.share for stage in self.sharing) else None
        strides = self._checked_strides(strides, num_stages)

        norm_layer = make_norm_layer(self.norm_cfg)
        width = self.base_channels
        self._build_stem(width, norm_layer)
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        channels = width
        for i, name in enumerate(self.stages):
            out_channels = width * 2**i * self.expansion
            make = self._make_basic if self.is_basic else self._make_bottleneck
            self.add_module(name, make(i, channels, out_channels, strides[i], norm_layer))
            channels = out_channels
        self.out_channels = tuple(width * 2**i * self.expansion for i in self.out_indices)
        first = 4 if self.stem_kind == 'imagenet' else 1
        self.out_strides = tuple(first * math.prod(strides[: i + 1]) for i in self.out_indices)
        self._finish()

    def _choose_stem(self, stem: str | None, base_channels: int | None) -> None:
        stem = stem or ('cifar' if self.has_three_stages else 'imagenet')
        check_choice('stem', stem, ['imagenet', 'cifar'])
        self.stem_kind = stem
        self.base_channels = (16 if self.has_three_stages else 64) if base_channels is None else base_channels
        check_int('base_channels', self.base_channels, 1)

    def _resolve_sharing(
        self, share: Any, share_first: Any, relaxation_rank: Any, ranks: dict[str, Any]
    ) -> tuple[StageSharing, ...]:
        """Check the options of sharing and return those of each stage, with None as the paper's values."""
        num_stages = len(self.arch_settings[self.depth])
        options = (self.depth, num_stages, share, share_first, relaxation_rank)
        if not self.is_basic:
            sharing = bottleneck_sharing(*options, ranks)
            if not self.basis_norm:
                raise ValueError(
                    f'basis_norm=False with depth={self.depth}, allowed: True, because bottlenecks have '
                    'no norm besides those of the plain network'
                )
            return sharing
        is_cifar100 = self.stem_kind == 'cifar' and self.depth in (18, 34)
        paper = dict(
            shared_rank=32 if is_cifar100 else 16 if self.stem_kind == 'cifar' else 48,
            unique_rank=1,
            bases=1 if is_cifar100 else 2,
        )
        given = {name: value for name, value in ranks.items() if value is not None}
        return basic_sharing(*options, **{**paper, **given})

    @staticmethod
    def _checked_strides(strides: Sequence[int] | None, num_stages: int) -> tuple[int, ...]:
        if strides is None:
            return (1,) + (2,) * (num_stages - 1)
        ok = isinstance(strides, Sequence) and len(strides) == num_stages
        if not ok or not all(type(stride) is int and stride in (1, 2) for stride in strides):
            raise ValueError(f'strides={strides!r}, allowed: {num_stages} integers of 1 or 2')
        return tuple(strides)

    def _build_stem(self, channels: int, norm_layer: NormLayer) -> None:
        if self.stem_kind == 'imagenet':
            self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)

    def _make_basic(
        self, index: int, in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer
    ) -> BasisStage:
        num_blocks, sharing = self.arch_settings[self.depth][index], self.sharing[index]
        names = [] if not sharing.share or num_blocks == 1 else ['conv1', 'conv2'][: sharing.bases]
        if len(names) == 1:
            names = ['conv']  # both convolutions read one basis
        bases = {name: FilterBasis(sharing.shared_rank, out_channels) for name in names}
        by_place = [*bases.values()] * (2 // len(bases)) if bases else []

        def factorized(place: int, cin: int, cout: int, conv_stride: int) -> nn.Module:
            if cin != cout:
                return conv3x3(place, cin, cout, conv_stride)
            return FactorizedConv2d(
                by_place[place - 1],
                cout,
                sharing.unique_rank,
                conv_stride,
                norm_layer=norm_layer if self.basis_norm else None,
            )

        block = partial(BasicBlock, padded_shortcut=self.has_three_stages, norm_layer=norm_layer)
        conv_layer = factorized if bases else conv3x3
        first_layer = conv_layer if sharing.share_first else conv3x3
        blocks = [block(in_channels, out_channels, stride, conv_layer=first_layer)]
        blocks += [block(out_channels, out_channels, conv_layer=conv_layer) for _ in range(1, num_blocks)]
        return BasisStage(blocks, bases, self.with_cp)

    @property
    def has_three_stages(self) -> bool:
        """bool: Whether the depth is one of the CIFAR-10 depths, whose shortcuts have no parameters."""
        return len(self.arch_settings[self.depth]) == 3

    def _make_bottleneck(
        self, index: int, in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer
    ) -> BasisStage:
        num_blocks, inner = self.arch_settings[self.depth][index], out_channels // self.expansion
        blocks = [
            Bottleneck(
                in_channels if i == 0 else out_channels,
                inner,
                out_channels,
                stride=stride if i == 0 else 1,
                norm_layer=norm_layer,
            )
            for i in range(num_blocks)
        ]
        sharing = self.sharing[index]
        readers = blocks if sharing.share_first else blocks[1:]
        bases = share_convolutions(readers, SHARES[sharing.share], sharing.relaxation_rank)
        return BasisStage(blocks, bases, self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv1, self.bn1] if stage == 0 else [getattr(self, self.stages[stage - 1])]

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def _fuse_outside_stages(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
