"""DR-MobileNetV2: MobileNetV2 with blocks in gated loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.loop_backbone import GATE_RATE, LoopBackbone
from mmrecur.models.backbones.per_stage import check_per_stage, one_per_stage
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.inverted_residual import InvertedResidual, check_width_mult, round_channels
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.registry import MODELS


@MODELS.register_module()
class DRMobileNetV2(LoopBackbone):
    """MobileNetV2 whose blocks run in loops that an image leaves when a gate decides so.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019, Table 2 and Section 4.2. Groups 3 to 6 have
    two blocks: the first changes resolution and width, the second runs in a loop (:class:`LoopBlock`) of up
    to two iterations, or three in group 4. The gates are single linear layers.

    Stages are numbered as in mmpretrain. Parameters are named as in :class:`RLAMobileNetV2`; those of a loop
    are ``layer3.1.block.conv1.weight``, ``layer3.1.block.bn1.0.weight`` (norm of the first iteration) and
    ``layer3.1.gate.fc2.weight``.

    Args:
        width_mult (float): Factor of all widths. Defaults to 1.0.
        blocks (Sequence[int]): Number of blocks in each of the seven groups. Defaults to
            (1, 2, 2, 2, 2, 2, 1).
        loops (Sequence[int]): Maximum number of iterations of the blocks in each group; the first block of a
            group always runs once. Defaults to (1, 1, 2, 3, 2, 2, 1).
        gated (bool): Whether gates let images leave the loops. Defaults to True.
        loop_norm (str, optional): ``'shared'``, ``'lvbn'`` or ``'i-lvbn'``, see :class:`LoopBlock`. Defaults
            to None: ``'i-lvbn'`` with gates and ``'lvbn'`` without.
        gate_channels (int): Hidden channels of the gates, 0 for a single linear layer. Defaults to 0.
        gate_position (str): ``'before'`` every iteration or ``'after'`` every iteration but the last, see
            :class:`LoopBlock`. Defaults to 'before'.
        initial_rate (float): Probability with which a gate lets an image pass before training. Defaults to
            0.85.
        loss_gate (Mapping, optional): Objective of the gates. A :class:`GateRateLoss` without
            ``target_rate`` gets that of Section 4.2, 0.9. Defaults to
            ``dict(type='mmrecur.GateRateLoss', loss_weight=1.0)``.
        skip (bool): Whether evaluation leaves out images that have left a loop. Defaults to True.
        relaxation_rank (int or Sequence[int]): Rank of the residual that each iteration adds to the weights
            of the 1x1 convolutions in its loop, for all groups or one for each. Values above the full rank
            are reduced to it. Depthwise convolutions have no residual: all iterations share them. The
            inference form contains no residuals. Defaults to 0, the paper's network.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return: 0 to 6 for the groups, 7 for the last convolution.
            Stages after the last one are not built. Defaults to (1, 2, 4, 6).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            gates. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import DRMobileNetV2
        >>> model = DRMobileNetV2(out_indices=(7,)).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 64, 64))]
        [(1, 1280, 2, 2)]
    """

    #: Expansion, channels and stride of each group.
    arch_settings = (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 2),
        (6, 64, 2),
        (6, 96, 1),
        (6, 160, 2),
        (6, 320, 1),
    )

    architectures = {'dr-mobilenetv2': {}}

    def __init__(
        self,
        width_mult: float = 1.0,
        blocks: Sequence[int] = (1, 2, 2, 2, 2, 2, 1),
        loops: Sequence[int] = (1, 1, 2, 3, 2, 2, 1),
        gated: bool = True,
        loop_norm: str | None = None,
        gate_channels: int = 0,
        gate_position: str = 'before',
        initial_rate: float = 0.85,
        loss_gate: Mapping | None = GATE_RATE,
        skip: bool = True,
        relaxation_rank: int | Sequence[int] = 0,
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
            gated=gated,
            loop_norm=loop_norm,
            gate_channels=gate_channels,
            gate_position=gate_position,
            initial_rate=initial_rate,
            loss_gate=loss_gate,
            target_rate=0.9,
            skip=skip,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_width_mult(width_mult)
        for name, value in (('blocks', blocks), ('loops', loops)):
            check_per_stage(name, value, len(self.arch_settings))
        self.width_mult = width_mult
        self.blocks, self.loops = tuple(blocks), tuple(loops)
        self.relaxation_rank = one_per_stage(
            'relaxation_rank', relaxation_rank, len(loops), partial(check_int, minimum=0)
        )
        self._build(make_norm_layer(self.norm_cfg))
        self._finish()

    def _build(self, norm_layer: NormLayer) -> None:
        widths = [round_channels(width * self.width_mult) for _, width, _ in self.arch_settings]
        strides = [2 * math.prod(s for *_, s in self.arch_settings[: i + 1]) for i in range(len(widths))]
        channels = round_channels(32 * self.width_mult)
        self.conv1 = nn.Conv2d(self.in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU6(inplace=True)
        for index, width in enumerate(widths[: self.num_stages]):
            self._add_stage(self._make_blocks(index, channels, width, norm_layer))
            channels = width
        widths.append(int(1280 * max(1.0, self.width_mult)))
        strides.append(strides[-1])
        if self.num_stages > len(self.stages):
            self.conv2 = nn.Conv2d(channels, widths[-1], 1, bias=False)
            self.bn2 = norm_layer(widths[-1])
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)

    def _make_blocks(
        self, index: int, in_channels: int, out_channels: int, norm_layer: NormLayer
    ) -> list[nn.Module]:
        """Build the blocks of a group, all but the first in loops."""
        expansion, _, stride = self.arch_settings[index]
        blocks: list[nn.Module] = []
        for i in range(self.blocks[index]):
            cin, step = (in_channels, stride) if i == 0 else (out_channels, 1)
            block = InvertedResidual(cin, cin * expansion, out_channels, step, norm_layer=norm_layer)
            blocks.append(block if i == 0 else self._loop(block, out_channels, index))
        return blocks

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv2, self.bn2] if stage > len(self.stages) else super().stage_modules(stage)

    def _run_stage(self, index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if index < len(self.stages):
            return super()._run_stage(index, x, state)
        return self.relu(self.bn2(self.conv2(x))), state

    def _switch_to_deploy(self) -> None:
        super()._switch_to_deploy()
        if self.num_stages > len(self.stages):
            self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
