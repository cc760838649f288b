"""RLA-ResNet for small images: pre-activated ResNets with recurrent layer aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.rla.cell import State
from mmrecur.models.layers.rla.preact import PreActBasicBlock, PreActBottleneck
from mmrecur.models.layers.rla.settings import RLASettings
from mmrecur.models.layers.rla.stage import append_hidden
from mmrecur.registry import MODELS


@MODELS.register_module()
class RLAPreActResNet(Backbone):
    """Pre-activated ResNet for images of about 32x32 pixels, with recurrent layer aggregation.

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Tables 7
    and 8. A 3x3 stem and three stages of strides 1, 2 and 4. Each block applies norm and ReLU to
    ``cat(x, h)`` first, and each updates the state ``h`` through a cell that the blocks of a stage share
    (:class:`RLACell`). Shortcuts that change the width are 1x1 convolutions of x without norm. The last
    output goes through a norm and ReLU of its own; the others are the sums as they are.

    Args:
        depth (int): ``6 n + 2`` with basic blocks, ``9 n + 2`` with bottlenecks, n blocks a stage.
        block (str, optional): ``'basic'`` or ``'bottleneck'``. Defaults to None: basic blocks below
            depth 164 and bottlenecks from there on, as in the paper, where the depth allows.
        rla_channels (int, optional): Channels k of the recurrent state; 0 gives the plain ResNet.
            Defaults to None: the paper's 4 with basic blocks and 12 with bottlenecks.
        variant, cell, share, exchange, post_act: What the recurrent path computes, see
            :class:`RLAResNet`; these and ``extra_channels`` make the rows of the paper's Table 11.
            Defaults to 'v1', 'conv', True, True and False.
        base_channels (int): Channels of the stem; stage i has ``base_channels * 2**i`` inside its
            blocks, and four times as many outputs with bottlenecks. Defaults to 16.
        extra_channels (int): Outputs that every stage has beyond these, a multiple of 4 with
            bottlenecks, whose 3x3 convolutions have a quarter as many more. Defaults to 0.
        with_hidden (bool): Make the last output ``cat(x, relu(BN(h)))``, which classifiers read;
            ``cat(x, h)`` where h is an activation already (``post_act`` and gated cells). Defaults to
            False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return. Stages behind the last are not built.
            Defaults to (2,).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages with their
            recurrent cells. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message names it, its value and what is
            allowed.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RLAPreActResNet
        >>> model = RLAPreActResNet(depth=164, with_hidden=True).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 268, 8, 8)]
    """

    #: Block -> its class, outputs per inner channel, layers in a block of each stage, default k.
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
        block_class, expansion, layers, default_channels = self.arch_settings[block]
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

        self.stages: list[str] = []
        channels, widths = base_channels, []
        for i in range(self.num_stages):
            inner = base_channels * 2**i + extra_channels // expansion
            blocks = []
            for j in range((depth - 2) // layers):
                stride = 2 if i > 0 and j == 0 else 1
                hidden = self.recurrence.block_channels
                blocks.append(block_class(channels, inner, inner * expansion, stride, hidden, norm_layer))
                channels = inner * expansion
            is_last = i == self.num_stages - 1
            stage = self.recurrence.make_stage(blocks, channels, is_last, norm_layer, with_cp)
            self.add_module(f'layer{i + 1}', stage)
            self.stages.append(f'layer{i + 1}')
            widths.append(channels)
        self.final_norm = norm_layer(channels)
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
