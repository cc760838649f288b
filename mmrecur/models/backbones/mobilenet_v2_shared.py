"""MobileNetV2-Shared, a MobileNetV2 whose blocks share 1x1 convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmrecur.checks import check_choice
from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.shared_basis_backbone import ORTHOGONALITY, SharedBasisBackbone
from mmrecur.models.layers.common.attention import ECA, ChannelGate
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.inverted_residual import (
    InvertedResidual,
    check_width_mult,
    eca_kernel_size,
    round_channels,
)
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.filter_basis import BasisStage, share_convolutions
from mmrecur.registry import MODELS

#: Convolutions that blocks share, for each value of ``share``. The first block of a stage never shares.
SHARES = {None: (), 'single': ('conv1',), 'double': ('conv1', 'conv3')}


class BasisInvertedResidual(InvertedResidual):
    """Inverted residual block of the authors' MobileNetV2.

    It differs from :class:`InvertedResidual` in two ways: its activation is ReLU instead of ReLU6, and it has
    an expansion convolution even if the expansion ratio is 1.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        stride (int): Stride of the depthwise convolution.
        expansion (int): Ratio of hidden channels to input channels.
        attention (ChannelGate, optional): Channel attention on the residual. Defaults to None.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        attention: ChannelGate | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        hidden = in_channels * expansion
        super().__init__(
            in_channels, hidden, out_channels, stride, attention=attention, norm_layer=norm_layer
        )
        if self.conv1 is None:
            self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.bn1 = norm_layer(hidden)
        self.relu = nn.ReLU(inplace=True)


@MODELS.register_module()
class MobileNetV2Shared(SharedBasisBackbone):
    """MobileNetV2 whose blocks share 1x1 convolutions.

    Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
    2021, https://arxiv.org/abs/2006.05066. In stages 3 to 6, all blocks except the first share the expansion
    convolution (``share='single'``) or the expansion and the projection (``'double'``, marked with a double
    dagger in the paper).

    Like the authors' network it differs from other MobileNetV2s in details: stem and head have biases and
    ReLU6, blocks have ReLU, and the block of the first stage has an expansion convolution of ratio 1. The
    authors' double-dagger network also has channel attention: ``share='double', attention='eca'``.

    Args:
        share (str, optional): Convolutions that the blocks share, see above. None gives a plain network.
            Defaults to 'single'.
        attention (str, optional): ``'eca'`` adds efficient channel attention to the residuals of the blocks
            that share, with kernel size 1 below 96 channels, else 3. It requires ``share``. Defaults to None.
        width_mult (float): Factor of all widths. Products are rounded to multiples of 8. Defaults to 1.0.
        loss_ortho (Mapping, optional): See :class:`ResNetShared`. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (Sequence[int]): Stages to return: 0 to 6 for the stages of blocks, 7 for the last 1x1
            convolution. Later stages are not built. Defaults to (7,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            bases. Defaults to -1.
        norm_cfg (dict, optional): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode during training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import MobileNetV2Shared
        >>> model = MobileNetV2Shared(out_indices=(1, 2, 4, 6)).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 64, 64))]
        [(1, 24, 16, 16), (1, 32, 8, 8), (1, 96, 4, 4), (1, 320, 2, 2)]
    """

    #: Expansion ratio, channels, number of blocks and stride of each stage (Sandler et al. 2018, Table 2).
    arch_settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    #: Indices of the stages whose blocks share.
    sharing_stages = (2, 3, 4, 5)
    architectures = {
        'mobilenetv2-shared': {},
        'mobilenetv2-shared-double': dict(share='double', attention='eca'),
    }

    def __init__(
        self,
        share: str | None = 'single',
        attention: str | None = None,
        width_mult: float = 1.0,
        loss_ortho: Mapping | None = ORTHOGONALITY,
        in_channels: int = 3,
        out_indices: Sequence[int] = (7,),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            len(self.arch_settings) + 1,
            loss_ortho,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_choice('share', share, SHARES)
        check_choice('attention', attention, [None, 'eca'] if share else [None])
        check_width_mult(width_mult)
        self.share = share
        self.attention = attention
        norm_layer = make_norm_layer(self.norm_cfg)
        channels = round_channels(32 * width_mult)
        self.conv1 = nn.Conv2d(self.in_channels, channels, 3, stride=2, padding=1)
        self.bn1 = norm_layer(channels)
        self.relu6 = nn.ReLU6(inplace=True)

        widths = [round_channels(width * width_mult) for _, width, _, _ in self.arch_settings]
        self.stages = []
        for i, width in enumerate(widths[: self.num_stages]):
            self.stages.append(f'layer{i + 1}')
            self.add_module(self.stages[-1], self._make_stage(i, channels, width, norm_layer))
            channels = width
        self.has_head = self.num_stages > len(widths)
        widths.append(max(1280, round_channels(1280 * width_mult)))
        if self.has_head:
            self.conv2 = nn.Conv2d(channels, widths[-1], 1)
            self.bn2 = norm_layer(widths[-1])
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        strides = [stride for _, _, _, stride in self.arch_settings] + [1]
        self.out_strides = tuple(2 * math.prod(strides[: i + 1]) for i in self.out_indices)
        self._finish()

    def _make_stage(
        self, index: int, in_channels: int, out_channels: int, norm_layer: NormLayer
    ) -> BasisStage:
        expansion, _, num_blocks, stride = self.arch_settings[index]
        names = SHARES[self.share] if index in self.sharing_stages else ()
        attends = bool(names) and self.attention == 'eca'
        blocks = [BasisInvertedResidual(in_channels, out_channels, stride, expansion, None, norm_layer)]
        for _ in range(1, num_blocks):
            eca = ECA(eca_kernel_size(out_channels)) if attends else None
            blocks.append(BasisInvertedResidual(out_channels, out_channels, 1, expansion, eca, norm_layer))
        return BasisStage(blocks, share_convolutions(blocks[1:], names), self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage in (0, len(self.arch_settings) + 1):
            return [self.conv1, self.bn1] if stage == 0 else [self.conv2, self.bn2]
        return [getattr(self, self.stages[stage - 1])]

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.relu6(self.bn1(self.conv1(x)))

    def _run_stage(self, index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if index < len(self.stages):
            return super()._run_stage(index, x, state)
        return self.relu6(self.bn2(self.conv2(x))), state

    def _fuse_outside_stages(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        if self.has_head:
            self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
