"""MobileNetV2-Shared: MobileNetV2 whose blocks share 1x1 convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.shared_basis_backbone import (
    ORTHOGONALITY,
    BasisStage,
    SharedBasisBackbone,
    share_convolutions,
)
from mmrecur.models.layers.common.attention import ECA, ChannelGate
from mmrecur.models.layers.common.checks import check_choice
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.inverted_residual import (
    InvertedResidual,
    check_width_mult,
    eca_kernel_size,
    round_channels,
)
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.registry import MODELS

#: What blocks share: 1x1 convolutions of each block but a stage's first.
SHARES = {None: (), 'single': ('conv1',), 'double': ('conv1', 'conv3')}


class BasisInvertedResidual(InvertedResidual):
    """Inverted residual block without a recurrent state, as the authors of the shared bases have it.

    It begins with a 1x1 convolution whatever its ratio.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the depthwise convolution.
        expansion (int): The hidden maps have ``expansion * in_channels`` channels.
        attention (ChannelGate, optional): Channel attention on the residual. Defaults to None.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
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
    2021, https://arxiv.org/abs/2006.05066. In the stages 3 to 6 all blocks but the first share the
    expansion (``share='single'``) or the expansion and the projection (``'double'``, marked with a double
    dagger in the paper). As in the authors' network, stem and head have biases and ReLU6, blocks ReLU, and
    the first stage has an expansion convolution too, of ratio 1. Their network with the double dagger also
    has channel attention: it is ``share='double', attention='eca'``.

    Args:
        share (str, optional): See above; None for a plain network. Defaults to 'single'.
        attention (str, optional): ``'eca'`` for efficient channel attention on the residuals of the blocks
            that share, before the sum, with a kernel of 1 for fewer than 96 channels, else 3; it needs blocks
            that share. None for none. Defaults to None.
        width_mult (float): Factor of all widths; the products are rounded to multiples of 8. Defaults
            to 1.0.
        loss_ortho (Mapping, optional): See :class:`ResNetShared`. Defaults to
            ``dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0)``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, from 0 to 6, and 7 for the last 1x1 convolution.
            Defaults to (7,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages with their bases.
            Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
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

    #: Expansion, channels, blocks, stride of each stage (Sandler et al., Table 2).
    arch_settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up.
        """
        x = self.relu6(self.bn1(self.conv1(x)))
        outputs = []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outputs.append(x)
        if self.has_head:
            outputs.append(self.relu6(self.bn2(self.conv2(x))))
        return tuple(outputs)

    def _deploy_rest(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        if self.has_head:
            self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
