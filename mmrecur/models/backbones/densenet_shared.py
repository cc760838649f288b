"""DenseNet-Shared, a DenseNet whose layers share filter bases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY, SharedBasisBackbone
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.filter_basis import BasisDenseLayer, BasisStage, FilterBasis, PoolingTransition
from mmrecur.registry import MODELS


@MODELS.register_module()
class DenseNetShared(SharedBasisBackbone):
    """DenseNet for CIFAR whose layers share filter bases.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066, Table 2: DenseNet121-S16U1. All 3x3 convolutions of a dense block
    are factorised into ``shared_rank`` filters that they share, ``unique_rank`` filters of their own, and
    coefficients. As in the authors' network, transitions have no ReLU.

    Args:
        depth (int): 121, 161, 169 or 201. Defaults to 121.
        shared_rank (int): Number of filters that a dense block shares. 0 gives a plain network. Defaults to
            16.
        unique_rank (int): Number of filters that belong to a single 3x3 convolution. Defaults to 1.
        last_basis (str): Basis of the fourth dense block: its ``'own'``, or that of the ``'third'`` block,
            which the authors' code uses by mistake. Defaults to 'own'.
        growth_rate (int): Number of channels that a layer appends. Defaults to 32.
        stem_channels (int): Number of channels of the stem, a 3x3 convolution of stride 1. Defaults to 64.
        loss_ortho (Mapping, optional): See :class:`ResNetShared`. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (Sequence[int]): Dense blocks to return, 0 for the first. A final norm and ReLU follow the
            fourth. Later blocks are not built. Defaults to (3,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i dense blocks. A basis
            is frozen only if all blocks that read it are. Defaults to -1.
        norm_cfg (dict, optional): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode during training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
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

    #: Number of layers in each dense block.
    arch_settings = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 161: (6, 12, 36, 24)}

    def __init__(
        self,
        depth: int = 121,
        shared_rank: int = 16,
        unique_rank: int = 1,
        last_basis: str = 'own',
        growth_rate: int = 32,
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
        check_int('growth_rate', growth_rate, 1)
        check_int('stem_channels', stem_channels, 1)
        norm_layer = make_norm_layer(self.norm_cfg)
        self.conv1 = nn.Conv2d(self.in_channels, stem_channels, 3, padding=1, bias=False)
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        #: For each stage, the stage that owns the basis it reads.
        self.basis_of = {name: name for name in self.stages} if shared_rank else {}
        if last_basis == 'third' and 'layer4' in self.basis_of:
            self.basis_of['layer4'] = 'layer3'
        self.shared_rank = shared_rank
        self.unique_rank = unique_rank
        self.growth_rate = growth_rate

        channels, widths = stem_channels, []
        for i, name in enumerate(self.stages):
            if i:
                self.add_module(f'transition{i}', PoolingTransition(channels, channels // 2, norm_layer))
                channels //= 2
            num_layers = self.arch_settings[depth][i]
            self.add_module(name, self._make_stage(name, num_layers, channels, norm_layer))
            channels += num_layers * growth_rate
            widths.append(channels)
        self.norm = norm_layer(channels) if self.num_stages == 4 else None
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(2**i for i in self.out_indices)
        self._finish()

    def _make_stage(self, name: str, num_layers: int, in_channels: int, norm_layer: NormLayer) -> BasisStage:
        owner = self.basis_of.get(name)
        bases: dict[str, FilterBasis] = {}
        basis = None
        if owner == name:
            basis = bases['conv2'] = FilterBasis(self.shared_rank, 4 * self.growth_rate)
        elif owner is not None:
            basis = getattr(self, owner).basis['conv2']
        rate = self.growth_rate
        layers = [
            BasisDenseLayer(in_channels + i * rate, rate, basis, self.unique_rank, norm_layer)
            for i in range(num_layers)
        ]
        return BasisStage(layers, bases, self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1]
        name = self.stages[stage - 1]
        modules = [*getattr(self, name).blocks]
        if stage > 1:
            modules.append(getattr(self, f'transition{stage - 1}'))
        # a basis belongs to the last stage that reads it, so that freezing an earlier one does not freeze it
        owner = self.basis_of.get(name)
        if owner is not None:
            readers = [reader for reader, read in self.basis_of.items() if read == owner]
            basis = getattr(self, owner).basis
            if readers[-1] == name and basis is not None:
                modules.append(basis)
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

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def _run_stage(self, index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if index > 0:
            x = getattr(self, f'transition{index}')(x)
        return super()._run_stage(index, x, state)

    def _finish_outputs(self, outputs: list[Tensor], state: Any) -> list[Tensor]:
        if self.norm is not None:
            outputs[-1] = F.relu(self.norm(outputs[-1]))
        return outputs

    def _fuse_outside_stages(self) -> None:
        for i in range(1, self.num_stages):
            getattr(self, f'transition{i}').switch_to_deploy()
