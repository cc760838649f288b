"""RLA-MobileNetV2: MobileNetV2 with recurrent layer aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.backbones.rla_resnet import build_attention
from mmrecur.models.layers.common.attention import ChannelGate
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.inverted_residual import (
    check_width_mult,
    eca_kernel_size,
    round_channels,
)
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.rla.block import RLAInvertedResidual
from mmrecur.models.layers.rla.cell import RLACell
from mmrecur.models.layers.rla.stage import RLAStage
from mmrecur.registry import MODELS


@MODELS.register_module()
class RLAMobileNetV2(Backbone):
    """MobileNetV2 with recurrent layer aggregation (RLA).

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Appendix
    B.2.1. A state ``h`` of ``rla_channels`` channels accompanies the inverted residual blocks. It joins each
    block after the expansion (:class:`RLAInvertedResidual`), and the residual ``y`` of the block updates it:
    ``h = W_r * tanh(BN(h + W_o * y))``. The blocks of one width share the 1x1 convolution W_o
    (:class:`RLACell`). The blocks of one resolution, or all blocks, share the depthwise convolution W_r
    (``recurrent_convs``). After the last block, ``relu6(BN(h))`` joins the input of the last convolution.

    Stages are numbered as in mmpretrain: seven groups of blocks, ``layer1`` to ``layer7``, and the last
    convolution, ``conv2``. The layers within them have the names of torchvision's ResNet (``conv1``,
    ``bn1``, ``layer2.0.conv3.weight``), because an inverted residual block has the three convolutions of a
    bottleneck. Unlike the names in the libraries' MobileNets (``layer1.0.conv.0.conv``), they do not depend
    on whether a block expands. RLA adds ``..._hidden``, ``hidden_norm``, ``rla`` and ``recurrent_convs``.

    Args:
        width_mult (float): Multiplier of all widths except that of the state. Defaults to 1.0.
        rla_channels (int): Channels k of the state. 0 gives the plain MobileNetV2. Defaults to 32.
        share (str): ``'stage'``: one W_r for each of the five stages of the paper, which start at
            ``layer1``, 2, 3, 4 and 6. ``'network'``: one W_r for all stages, as in the authors' code.
            Defaults to 'stage'.
        attention (str or dict, optional): Channel attention on the residuals: ``'eca'`` (kernel size 1 below
            96 channels, otherwise 3), ``'se'``, or a dict with one of these as ``type`` and arguments of the
            layer. Defaults to None.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return: 0 to 6 for the groups, 7 for the last convolution of
            1280 channels. Stages after the last one are not built. Defaults to (1, 2, 4, 6), the last group
            of each stride from 4 to 32.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            recurrent parts. A shared W_r is frozen with the last group that uses it. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAMobileNetV2
        >>> model = RLAMobileNetV2().eval()
        >>> for feature in model(torch.rand(1, 3, 64, 64)):
        ...     print(tuple(feature.shape))
        (1, 24, 16, 16)
        (1, 32, 8, 8)
        (1, 96, 4, 4)
        (1, 320, 2, 2)
    """

    #: Expansion, output channels, blocks and stride of each group.
    arch_settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    #: Stage of the paper that each group belongs to.
    recurrent_stages = (0, 1, 2, 3, 3, 4, 4)
    architectures = {'rla-mobilenetv2': {}, 'rla-eca-mobilenetv2': dict(attention='eca')}

    def __init__(
        self,
        width_mult: float = 1.0,
        rla_channels: int = 32,
        share: str = 'stage',
        attention: str | dict | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 4, 6),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            num_stages=len(self.arch_settings) + 1,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_width_mult(width_mult)
        check_int('rla_channels', rla_channels, 0)
        check_choice('share', share, ('stage', 'network'))
        self.width_mult = width_mult
        self.rla_channels = rla_channels
        self.share = share
        self.attention = attention
        norm_layer = make_norm_layer(self.norm_cfg)

        channels = round_channels(32 * width_mult)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU6(inplace=True)
        self.groups: list[str] = []
        widths, strides = [], [2]
        for index, (expansion, width, num_blocks, stride) in enumerate(self.arch_settings):
            widths.append(round_channels(width * width_mult))
            strides.append(strides[-1] * stride)
            if index < self.num_stages:
                group = self._make_group(
                    index, channels, widths[-1], num_blocks, stride, expansion, norm_layer
                )
                self.add_module(f'layer{index + 1}', group)
                self.groups.append(f'layer{index + 1}')
                channels = widths[-1]
        self._build_recurrent_convs()
        self.ends = self.num_stages > len(self.arch_settings)
        widths.append(int(1280 * max(1.0, width_mult)))
        if self.ends:
            self._build_end(channels, widths[-1], norm_layer)
        strides = [*strides[1:], strides[-1]]
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self._freeze()

    def _make_group(
        self,
        index: int,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        stride: int,
        expansion: int,
        norm_layer: NormLayer,
    ) -> RLAStage:
        blocks = []
        for i in range(num_blocks):
            channels = in_channels if i == 0 else out_channels
            blocks.append(
                RLAInvertedResidual(
                    channels,
                    channels * expansion,
                    out_channels,
                    stride=stride if i == 0 else 1,
                    hidden_channels=self.rla_channels,
                    attention=self._build_attention(out_channels),
                    norm_layer=norm_layer,
                )
            )
        # an update that nothing reads is omitted: its parameters would never get a gradient
        num_updates = num_blocks if index < self.num_stages - 1 else num_blocks - 1
        cell = None
        if self.rla_channels and num_updates:
            cell = RLACell(
                out_channels,
                self.rla_channels,
                num_steps=num_updates,
                norm_layer=norm_layer,
                recurrent_conv=nn.Identity(),  # shared with other groups: see recurrent_convs
            )
        return RLAStage(blocks, cell, with_cp=self.with_cp)

    def _build_attention(self, channels: int) -> ChannelGate | None:
        cfg = dict(type='eca') if self.attention == 'eca' else self.attention
        if isinstance(cfg, dict) and cfg.get('type') == 'eca':
            cfg = {'kernel_size': eca_kernel_size(channels), **cfg}
        return build_attention(cfg, channels, stage=0)

    def _build_recurrent_convs(self) -> None:
        """Build ``recurrent_convs``, one W_r for all groups that share it."""
        stages = self.recurrent_stages if self.share == 'stage' else [0] * len(self.groups)
        k = self.rla_channels
        updating = [i for i, name in enumerate(self.groups) if getattr(self, name).rla is not None]
        #: Index of W_r by group, for the groups that update the state.
        self.recurrent_index = {i: stages[i] for i in updating}
        self.recurrent_convs = nn.ModuleList(
            nn.Conv2d(k, k, 3, padding=1, groups=k, bias=False)
            for _ in sorted(set(self.recurrent_index.values()))
        )

    def _build_end(self, in_channels: int, out_channels: int, norm_layer: NormLayer) -> None:
        k = self.rla_channels
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.conv2_hidden = nn.Conv2d(k, out_channels, 1, bias=False) if k else None
        self.hidden_norm = norm_layer(k) if k else None
        self.bn2 = norm_layer(out_channels)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`. A shared W_r belongs to the last group that uses it."""
        if stage == 0:
            return [self.conv1, self.bn1]
        if stage > len(self.groups):
            end = [self.conv2, self.conv2_hidden, self.hidden_norm, self.bn2]
            return [module for module in end if module is not None]
        modules = [getattr(self, self.groups[stage - 1])]
        last_users = {conv: group for group, conv in self.recurrent_index.items()}
        modules += [self.recurrent_convs[conv] for conv, g in last_users.items() if g == stage - 1]
        return modules

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """See :meth:`Backbone.stage_layers`. A shared W_r belongs to the first group that uses it."""
        layers = super().stage_layers(stage)
        if stage - 1 in self.recurrent_index:
            layers[0].append(self.recurrent_convs[self.recurrent_index[stage - 1]])
        return layers

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _run_stage(self, index: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if index < len(self.groups):
            conv = self.recurrent_index.get(index)
            recurrent_conv = None if conv is None else self.recurrent_convs[conv]
            return getattr(self, self.groups[index])(x, state, recurrent_conv)
        x = self.conv2(x)
        if self.conv2_hidden is not None:
            x = x + self.conv2_hidden(self.relu(self.hidden_norm(state)))
        return self.relu(self.bn2(x)), state

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for name in self.groups:
            getattr(self, name).switch_to_deploy()
        self.layer1[0].assume_zero_state()
        if self.ends:
            self.conv2, self.conv2_hidden, self.bn2 = fuse_norm_of_sum(
                self.conv2, self.conv2_hidden, self.bn2
            )
