"""DenseNet-Shared: DenseNets whose layers share filter bases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY, BasisStage, SharedBasisBackbone
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.filter_basis.basis import FactorizedConv2d, FilterBasis
from mmrecur.models.layers.rla.dense_block import DenseLayer
from mmrecur.registry import MODELS


class BasisDenseLayer(DenseLayer):
    """A layer of a dense block that appends its output to its input, its 3x3 convolution factorised.

    Args:
        in_channels (int): Channels of the input.
        growth (int): Channels of what it appends; the 1x1 convolution has ``4 * growth``.
        basis (FilterBasis, optional): Shared filters of the 3x3 convolution; None for a plain one.
        unique_rank (int): Its own filters. Defaults to 0.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        basis: FilterBasis | None = None,
        unique_rank: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__(in_channels, growth, norm_layer=norm_layer)
        if basis is not None:
            self.conv2 = FactorizedConv2d(basis, growth, unique_rank, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, in_channels + growth, H, W).
        """
        return torch.cat([x, super().forward(x)], 1)


class Transition(nn.Module):
    """What stands between dense blocks: BN, 2x2 average pooling, 1x1 convolution.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm_layer(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution, sizes rounded up.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / 2, W / 2).
        """
        # everything is affine here, so the convolution may come last: a quarter of the pixels
        return self.conv(F.avg_pool2d(self.norm(x), 2, 2, ceil_mode=True, count_include_pad=False))

    def switch_to_deploy(self) -> None:
        """Fold the norm into the convolution behind it, where it can be."""
        if is_fusible(self.norm):
            scale, shift = norm_affine(self.norm)
            matrix = self.conv.weight.flatten(1).double()
            self.conv.bias = nn.Parameter((matrix @ shift.double()).to(self.conv.weight))
            self.conv.weight.mul_(scale.view(-1, 1, 1))
            self.norm = nn.Identity()


@MODELS.register_module()
class DenseNetShared(SharedBasisBackbone):
    """DenseNet in its CIFAR form whose layers share filter bases.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066, Table 2: DenseNet121-S16U1. All 3x3 convolutions of a dense
    block are factorised over ``shared_rank`` filters that they share and ``unique_rank`` of their own. As in
    the authors' network, transitions have no ReLU.

    Args:
        depth (int): 121, 169, 201 or 161. Defaults to 121.
        shared_rank (int): Shared filters of a dense block; 0 for a plain network. Defaults to 16.
        unique_rank (int): Filters of its own of each 3x3 convolution. Defaults to 1.
        last_basis (str): Whose filters the fourth dense block reads: its ``'own'``, or the third
            block's, ``'third'``, which the authors' code does by accident. Defaults to 'own'.
        growth (int): Channels that a layer appends. Defaults to 32.
        stem_channels (int): Channels of the first convolution, 3x3 of stride 1. Defaults to 64.
        loss_ortho (Mapping, optional): See :class:`ResNetShared`. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Dense blocks to return; the fourth with the last norm and ReLU.
            Defaults to (3,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i blocks. A basis that a
            later block reads is frozen with that one. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import DenseNetShared
        >>> model = DenseNetShared(121, shared_rank=16, unique_rank=1).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 1024, 4, 4)]
    """

    #: Layers in each dense block.
    arch_settings = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 161: (6, 12, 36, 24)}

    def __init__(
        self,
        depth: int = 121,
        shared_rank: int = 16,
        unique_rank: int = 1,
        last_basis: str = 'own',
        growth: int = 32,
        stem_channels: int = 64,
        loss_ortho: Mapping | None = ORTHOGONALITY,
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            4,
            loss_ortho,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_choice('depth', depth, self.arch_settings)
        check_int('shared_rank', shared_rank, 0)
        check_int('unique_rank', unique_rank, 0)
        check_choice('last_basis', last_basis, ['own', 'third'])
        check_int('growth', growth, 1)
        check_int('stem_channels', stem_channels, 1)
        norm_layer = make_norm_layer(self.norm_cfg)
        self.conv1 = nn.Conv2d(self.in_channels, stem_channels, 3, padding=1, bias=False)
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        #: Which stage owns the basis that a stage reads.
        self.basis_of = {name: name for name in self.stages} if shared_rank else {}
        if last_basis == 'third' and 'layer4' in self.basis_of:
            self.basis_of['layer4'] = 'layer3'
        self.unique_rank = unique_rank

        channels, widths = stem_channels, []
        for i, name in enumerate(self.stages):
            if i:
                self.add_module(f'transition{i}', Transition(channels, channels // 2, norm_layer))
                channels //= 2
            basis, own = None, {}
            if owner := self.basis_of.get(name):
                if owner == name:
                    own['conv2'] = FilterBasis(shared_rank, 4 * growth)
                basis = own['conv2'] if own else getattr(self, owner).basis['conv2']
            layers = [
                BasisDenseLayer(channels + j * growth, growth, basis, unique_rank, norm_layer)
                for j in range(self.arch_settings[depth][i])
            ]
            self.add_module(name, BasisStage(layers, own, self.with_cp))
            channels += len(layers) * growth
            widths.append(channels)
        self.norm = norm_layer(channels) if self.num_stages == 4 else None
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(2**i for i in self.out_indices)
        self._finish()

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1]
        name = self.stages[stage - 1]
        modules = [*getattr(self, name).blocks]
        if stage > 1:
            modules.append(getattr(self, f'transition{stage - 1}'))
        # a basis belongs to the last stage that reads it
        for owner in {self.basis_of.get(name)} - {None}:
            readers = [reader for reader, read in self.basis_of.items() if read == owner]
            if readers[-1] == name and getattr(self, owner).basis is not None:
                modules.append(getattr(self, owner).basis)
        if stage == 4:
            modules.append(self.norm)
        return modules

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """See :meth:`Backbone.stage_layers`."""
        if stage == 0:
            return super().stage_layers(stage)
        layers = getattr(self, self.stages[stage - 1]).block_parts()
        if stage > 1:
            layers[0].append(getattr(self, f'transition{stage - 1}'))
        return layers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each dense block in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up.
        """
        x = self.conv1(x)
        outputs = []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(getattr(self, f'transition{i}')(x) if i else x)
            if i == 3:
                x = F.relu(self.norm(x))
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _deploy_rest(self) -> None:
        for i in range(1, self.num_stages):
            getattr(self, f'transition{i}').switch_to_deploy()
