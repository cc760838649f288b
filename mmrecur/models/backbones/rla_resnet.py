"""RLA-ResNet: ResNets and ResNeXts with recurrent layer aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.registry import MODELS

from ..layers.activation_checkpoint import checkpoint_step
from ..layers.attention import ECA, ChannelGate, SqueezeExcite
from ..layers.checks import check_choice, check_flag, check_int
from ..layers.fuse import fold_norm
from ..layers.residual import Bottleneck, DeepStem, NormLayer
from ..layers.rla import RLA_VARIANTS, RLACell, downsample_hidden
from .base import Backbone, make_norm_layer

#: Size of the ECA convolution in each stage (ECA-ResNet, as the authors of RLA use it).
ECA_KERNEL_SIZES = (5, 5, 5, 7)


def build_attention(cfg: str | dict | None, channels: int, stage: int) -> ChannelGate | None:
    """Build a block's channel attention.

    Args:
        cfg (str or dict, optional): ``'se'``, ``'eca'``, a dict with one of these as ``type`` and the
            layer's arguments, or None.
        channels (int): Channels of the block's residual.
        stage (int): Index of the stage, which decides ECA's default kernel size.

    Returns:
        ChannelGate, optional: The layer.

    Raises:
        ValueError, TypeError: If ``cfg`` names no attention or has wrong arguments.
    """
    if cfg is None:
        return None
    allowed = (
        f"attention={cfg!r}, allowed: None, 'se', 'eca', dict(type='se', reduction=16), "
        "dict(type='eca', kernel_size=5)"
    )
    if not isinstance(cfg, (str, dict)):
        raise TypeError(allowed)
    args = dict(type=cfg) if isinstance(cfg, str) else dict(cfg)
    kind = args.pop('type', None)
    try:
        if kind == 'se':
            return SqueezeExcite(channels, **args)
        if kind == 'eca':
            return ECA(**{'kernel_size': ECA_KERNEL_SIZES[stage], **args})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{allowed} ({error})') from error
    raise ValueError(allowed)


class RLAStage(nn.Module):
    """A stage: residual blocks, named ``0``, ``1``, ..., and the recurrent cell ``rla`` they share.

    Args:
        blocks (Sequence[Bottleneck]): The stage's blocks.
        cell (RLACell, optional): Its cell, with an update for each block, or for each but the last if
            nothing reads the state after the stage; None if nothing updates the state.
        source (str): What the cell aggregates, see :class:`Bottleneck`.
        with_cp (bool): Recompute each block with its update in the backward pass.
    """

    def __init__(
        self, blocks: Sequence[Bottleneck], cell: RLACell | None, source: str, with_cp: bool = False
    ) -> None:
        super().__init__()
        self.num_blocks = len(blocks)
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)
        self.rla = cell
        self.num_updates = 0 if cell is None else len(cell.norms)
        self.source = source
        self.with_cp = with_cp

    @property
    def blocks(self) -> list[Bottleneck]:
        """list[Bottleneck]: The blocks in order."""
        return [getattr(self, str(i)) for i in range(self.num_blocks)]

    def step(self, x: Tensor, h: Tensor | None, index: int) -> tuple[Tensor, Tensor | None]:
        """Run one block and, if there is one, the update after it."""
        block = getattr(self, str(index))
        if index >= self.num_updates:
            return block(x, h)[0], h
        x, new = block(x, h, self.source, self.rla.readout(index))
        if h is None and block.conv1_hidden is not None and self.training:
            # DistributedDataParallel waits for the gradient of every parameter: one of zeros here
            new = new + 0 * block.conv1_hidden.weight.sum()
        return x, self.rla.update(downsample_hidden(h, block.stride), new, index)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            h (Tensor, optional): State, shape (N, k, H, W); None for zeros.

        Returns:
            tuple[Tensor, Tensor]: The stage's output and the state after its last update.
        """
        for index in range(self.num_blocks):
            if self.with_cp and torch.is_grad_enabled() and self.training:
                x, h = checkpoint_step(self, self.step, x, h, index)
            else:
                x, h = self.step(x, h, index)
        return x, h

    def switch_to_deploy(self) -> None:
        """Fold the norms, collapse W_o with the last convolution of the blocks it reads."""
        for block in self.blocks:
            block.switch_to_deploy()
        if self.rla is None:
            return
        # W_o reads W_3 a + b_3 directly where a has fewer channels
        lasts = [block.residual_conv() for block in self.blocks]
        collapses = self.source == 'residual' and all(
            conv is not None and conv.in_channels < conv.out_channels for conv in lasts
        )
        fused = self.rla.fused(lasts if collapses else None)
        if fused is not None:
            self.rla = fused
            self.source = 'inner' if collapses else self.source


@MODELS.register_module()
class RLAResNet(Backbone):
    """ResNet, ResNeXt, SE- or ECA-ResNet with recurrent layer aggregation.

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852. A state
    ``h`` of ``rla_channels`` channels runs along the blocks: each block reads ``cat(x, h)`` and each
    updates ``h`` through a cell that the blocks of a stage share (:class:`RLACell`). Parameters are
    named as in torchvision's ResNet (``layer1.0.conv1.weight``); what RLA adds is ``conv1_hidden`` in
    each block, ``rla`` in each stage and, with ``with_hidden``, ``hidden_norm``.

    The released code of the authors computes variant v3 (resp. v4) where the paper says v1 (resp. v2);
    their checkpoints need ``variant='v3'``.

    Args:
        depth (int): 50, 101 or 152.
        rla_channels (int): Channels k of the recurrent state. Defaults to 32.
        variant (str): ``'v1'`` to ``'v6'`` of Figure 4: what is aggregated (residual, output, shortcut)
            and whether it joins the state before the recurrent convolution (v1, v3, v5) or after it.
            Defaults to 'v1', the paper's proposal.
        attention (str or dict, optional): Channel attention on the residuals: ``'se'``, ``'eca'`` or a
            dict with one of these as ``type`` and its arguments. Defaults to None.
        groups (int): Groups of the 3x3 convolutions (ResNeXt). Defaults to 1.
        base_width (int): Channels of a group in the first stage (ResNeXt-32x4d: ``groups=32,
            base_width=4``). Only with several groups. Defaults to 64.
        base_channels (int): Channels of the stem; stage i has ``4 * base_channels * 2**i`` outputs.
            Defaults to 64.
        deep_stem (bool): Three 3x3 convolutions as stem (ResNet-D). Defaults to False.
        avg_down (bool): Average pooling on strided shortcuts (ResNet-D). Defaults to False.
        strides (Sequence[int]): Stride of each stage's first block. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of each stage's 3x3 convolutions. Defaults to (1, 1, 1, 1).
        with_hidden (bool): Make the last output ``cat(x, relu(BN(h)))``, which classifiers read.
            Defaults to False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return. Stages behind the last are not built.
            Defaults to (0, 1, 2, 3).
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
        >>> from mmrecur.models.backbones import RLAResNet
        >>> model = RLAResNet(depth=50).eval()
        >>> for feature in model(torch.rand(1, 3, 64, 64)):
        ...     print(tuple(feature.shape))
        (1, 256, 16, 16)
        (1, 512, 8, 8)
        (1, 1024, 4, 4)
        (1, 2048, 2, 2)
    """

    #: Blocks in each stage.
    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    expansion = 4

    def __init__(
        self,
        depth: int,
        rla_channels: int = 32,
        variant: str = 'v1',
        attention: str | dict | None = None,
        groups: int = 1,
        base_width: int = 64,
        base_channels: int = 64,
        deep_stem: bool = False,
        avg_down: bool = False,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        with_hidden: bool = False,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            num_stages=4,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_choice('depth', depth, self.arch_settings)
        check_choice('variant', variant, RLA_VARIANTS)
        check_int('rla_channels', rla_channels, 1)
        check_int('groups', groups, 1)
        check_int('base_width', base_width, 1)
        check_int('base_channels', base_channels, 2)
        check_flag(deep_stem=deep_stem, avg_down=avg_down, with_hidden=with_hidden)
        if groups == 1 and base_width != 64:
            raise ValueError(f'base_width={base_width} with groups=1, allowed: 64, or several groups')
        self._check_per_stage(strides=strides, dilations=dilations)
        self.depth = depth
        self.rla_channels = rla_channels
        self.variant = variant
        self.attention = attention
        self.with_hidden = with_hidden
        self.avg_down = avg_down
        norm_layer = make_norm_layer(self.norm_cfg)
        self._build_stem(base_channels, deep_stem, norm_layer)

        self.stages: list[str] = []
        channels = base_channels
        for i in range(self.num_stages):
            width = base_channels * 2**i
            inner = width if groups == 1 else base_width * groups * 2**i
            stage = self._make_stage(
                i, channels, inner, width * self.expansion, strides[i], dilations[i], groups, norm_layer
            )
            channels = width * self.expansion
            self.add_module(f'layer{i + 1}', stage)
            self.stages.append(f'layer{i + 1}')
        self.hidden_norm = norm_layer(rla_channels) if with_hidden else None

        self.out_channels = tuple(
            base_channels * 2**i * self.expansion
            + (rla_channels if with_hidden and i == self.out_indices[-1] else 0)
            for i in self.out_indices
        )
        self.out_strides = tuple(4 * math.prod(strides[: i + 1]) for i in self.out_indices)
        self._freeze()

    @staticmethod
    def _check_per_stage(**arguments: Sequence[int]) -> None:
        for name, value in arguments.items():
            ok = isinstance(value, Sequence) and len(value) == 4
            if not ok or not all(type(v) is int and v in (1, 2, 4) for v in value):
                raise ValueError(f'{name}={value!r}, allowed: four integers of 1, 2 or 4')

    def _build_stem(self, channels: int, deep: bool, norm_layer: NormLayer) -> None:
        self.deep_stem = deep
        if deep:
            self.stem = DeepStem(self.in_channels, channels, norm_layer)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm_layer(channels)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def _make_stage(
        self,
        index: int,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        groups: int,
        norm_layer: NormLayer,
    ) -> RLAStage:
        num_blocks = self.arch_settings[self.depth][index]
        blocks = [
            Bottleneck(
                in_channels if i == 0 else out_channels,
                inner_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                dilation=dilation,
                groups=groups,
                hidden_channels=self.rla_channels,
                attention=build_attention(self.attention, out_channels, index),
                avg_down=self.avg_down,
                norm_layer=norm_layer,
            )
            for i in range(num_blocks)
        ]
        source, add_first = RLA_VARIANTS[self.variant]
        # what nothing reads is not built: its parameters would never get a gradient
        state_is_read = self.with_hidden or index < self.num_stages - 1
        cell = RLACell(
            out_channels,
            self.rla_channels,
            num_steps=num_blocks if state_is_read else num_blocks - 1,
            add_first=add_first,
            norm_layer=norm_layer,
        )
        return RLAStage(blocks, cell, source, self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.stem] if self.deep_stem else [self.conv1, self.bn1]
        modules = [getattr(self, self.stages[stage - 1])]
        if stage == self.num_stages and self.hidden_norm is not None:
            modules.append(self.hidden_norm)
        return modules

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up. With ``with_hidden`` the last one has
            ``rla_channels`` more channels.
        """
        x = self.stem(x) if self.deep_stem else self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        h = None  # zeros, at no cost
        outputs = []
        for i, name in enumerate(self.stages):
            x, h = getattr(self, name)(x, h)
            if i in self.out_indices:
                outputs.append(x)
        if self.hidden_norm is not None:
            outputs[-1] = torch.cat([x, torch.relu(self.hidden_norm(h))], dim=1)
        return tuple(outputs)

    def _switch_to_deploy(self) -> None:
        if self.deep_stem:
            self.stem.switch_to_deploy()
        else:
            self.conv1, self.bn1 = fold_norm(self.conv1, self.bn1)
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        getattr(self.layer1, '0').conv1_hidden = None  # reads zeros
