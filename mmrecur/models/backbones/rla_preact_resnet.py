"""RLA-ResNet for small images: pre-activated ResNets with recurrent layer aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.rla.cell import State
from mmrecur.models.layers.rla.preact import PreActBasicBlock, PreActBottleneck
from mmrecur.models.layers.rla.settings import RLASettings
from mmrecur.models.layers.rla.stage import RLAStage, append_hidden
from mmrecur.registry import MODELS


@MODELS.register_module()
class RLAPreActResNet(Backbone):
    """Pre-activated ResNet for images of about 32x32 pixels, with recurrent layer aggregation.

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Tables 7
    and 8. A 3x3 stem is followed by three stages of strides 1, 2 and 4. Each block starts with norm and ReLU
    of ``cat(x, h)`` and updates the state ``h`` through a cell that the blocks of a stage share
    (:class:`RLACell`). Shortcuts that change the width are 1x1 convolutions of x without norm. A final norm
    and ReLU follow the last output only.

    Args:
        depth (int): ``6 n + 2`` with basic blocks, ``9 n + 2`` with bottlenecks, for n blocks in each stage.
        block (str, optional): ``'basic'`` or ``'bottleneck'``. Defaults to None: basic blocks below
            depth 164, otherwise bottlenecks, as in the paper, if the depth allows both.
        rla_channels (int, optional): Channels k of the state. 0 gives the plain ResNet. Defaults to None: 4
            with basic blocks and 12 with bottlenecks, as in the paper.
        variant, cell, share, exchange, post_act: Options of the recurrent path, see :class:`RLAResNet`. With
            ``extra_channels`` they give the ablations of Table 11. Default to 'v1', 'conv', 'stage', True
            and False.
        base_channels (int): Channels of the stem. The blocks of stage i have ``base_channels * 2**i`` inner
            channels, and bottlenecks four times as many output channels. Defaults to 16.
        extra_channels (int): Additional output channels of every stage. With bottlenecks it is a multiple of
            4, and the 3x3 convolutions get a quarter as many. Defaults to 0.
        with_hidden (bool): Append the state to the last output, for classifiers: ``cat(x, relu(BN(h)))``, or
            ``cat(x, h)`` where h is the output of an activation (``post_act`` and gated cells). Defaults to
            False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return. Stages after the last one are not built.
            Defaults to (2,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            recurrent cells. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAPreActResNet
        >>> model = RLAPreActResNet(depth=164, with_hidden=True).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 268, 8, 8)]
    """

    #: Block -> class, output channels per inner channel, layers per block in all three stages, default k.
    arch_settings = {
        'basic': (PreActBasicBlock, 1, 6, 4),
        'bottleneck': (PreActBottleneck, 4, 9, 12),
    }

    def __init__(
        self,
        depth: int,
        block: str | None = None,
        rla_channels: int | None = None,
        variant: str = 'v1',
        cell: str = 'conv',
        share: str | None = 'stage',
        exchange: bool = True,
        post_act: bool = False,
        base_channels: int = 16,
        extra_channels: int = 0,
        with_hidden: bool = False,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            num_stages=3,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        block = self._chosen_block(depth, block)
        _, expansion, _, default_channels = self.arch_settings[block]
        rla_channels = default_channels if rla_channels is None else rla_channels
        check_int('base_channels', base_channels, 1)
        check_int('extra_channels', extra_channels, 0)
        if extra_channels % expansion:
            raise ValueError(f'extra_channels={extra_channels}, allowed: a multiple of {expansion}')
        self.recurrence = RLASettings(rla_channels, variant, cell, share, exchange, post_act, with_hidden)
        self.depth = depth
        self.block = block
        self.rla_channels = rla_channels
        self.with_hidden = with_hidden
        norm_layer = make_norm_layer(self.norm_cfg)
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, padding=1, bias=False)
        self.bn1 = norm_layer(base_channels)
        self.relu = nn.ReLU(inplace=True)

        widths = self._build_stages(base_channels, extra_channels, norm_layer)
        self.final_norm = norm_layer(widths[-1])
        self.hidden_norm = self.recurrence.make_hidden_norm(norm_layer)
        widths[-1] += rla_channels if with_hidden else 0
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(2**i for i in self.out_indices)
        self._freeze()

    @classmethod
    def _chosen_block(cls, depth: int, block: str | None) -> str:
        if block is not None:
            check_choice('block', block, cls.arch_settings)
        if type(depth) is int and depth > 2:
            fitting = [name for name in cls.arch_settings if not (depth - 2) % cls.arch_settings[name][2]]
            if block in fitting:
                return block
            if block is None and fitting:
                return fitting[-1 if depth >= 164 else 0]
        allowed = {'basic': '6 n + 2', 'bottleneck': '9 n + 2', None: '6 n + 2 or 9 n + 2'}[block]
        raise ValueError(f'depth={depth!r} with block={block!r}, allowed: {allowed} with n of at least 1')

    def _build_stages(self, base_channels: int, extra_channels: int, norm_layer: NormLayer) -> list[int]:
        """Build the stages and return the output channels of each."""
        expansion = self.arch_settings[self.block][1]
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        channels = [base_channels]
        for i, name in enumerate(self.stages):
            inner = base_channels * 2**i + extra_channels // expansion
            self.add_module(name, self._make_stage(i, channels[-1], inner, norm_layer))
            channels.append(inner * expansion)
        return channels[1:]

    def _make_stage(self, index: int, in_channels: int, inner: int, norm_layer: NormLayer) -> RLAStage:
        block_class, expansion, layers, _ = self.arch_settings[self.block]
        channels, blocks = inner * expansion, []
        for i in range((self.depth - 2) // layers):
            cin, stride = (channels, 1) if i else (in_channels, 2 if index else 1)
            hidden = self.recurrence.block_channels
            blocks.append(block_class(cin, inner, channels, stride, hidden, norm_layer))
        is_last = index == self.num_stages - 1
        return self.recurrence.make_stage(blocks, channels, is_last, norm_layer, self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1, self.bn1]
        modules = [getattr(self, self.stages[stage - 1])]
        if stage == self.num_stages:
            modules += [self.final_norm] if self.hidden_norm is None else [self.final_norm, self.hidden_norm]
        return modules

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _run_stage(self, index: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        if index == 0 and self.recurrence.block_channels:
            # not None: the norm of the first block shifts the zeros
            state = x.new_zeros(x.size(0), self.rla_channels, x.size(2), x.size(3))
            state = (state, state) if self.recurrence.cell == 'lstm' else state
        return getattr(self, self.stages[index])(x, state)

    def _finish_outputs(self, outputs: list[Tensor], state: State) -> list[Tensor]:
        outputs[-1] = torch.relu(self.final_norm(outputs[-1]))
        if self.with_hidden:
            outputs[-1] = append_hidden(outputs[-1], state, self.hidden_norm)
        return outputs

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
