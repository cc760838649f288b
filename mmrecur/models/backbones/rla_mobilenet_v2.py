"""RLA-MobileNetV2: MobileNetV2 with recurrent layer aggregation, and the plain one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.backbones.rla_resnet import build_attention
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.attention import ChannelGate
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.inverted_residual import (
    InvertedResidual,
    check_width_mult,
    eca_kernel_size,
    round_channels,
)
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.common.tap import Tap
from mmrecur.models.layers.rla.cell import RLACell, downsample_hidden
from mmrecur.registry import MODELS


class RLAGroup(Stage):
    """Inverted residual blocks of one width, named ``0``, ``1``, ..., with the cell ``rla`` they share.

    Args:
        blocks (Sequence[InvertedResidual]): The blocks.
        cell (RLACell, optional): Their cell without W_r, which several groups share; with an update for
            each block, or for each but the last if nothing reads the state after the group. None if
            there is no update.
        with_cp (bool): Recompute each block with its update in the backward pass.
    """

    def __init__(
        self, blocks: Sequence[InvertedResidual], cell: RLACell | None, with_cp: bool = False
    ) -> None:
        super().__init__(blocks)
        self.rla = cell
        self.num_updates = 0 if cell is None else len(cell.norms)
        self.with_cp = with_cp

    def block_parts(self) -> list[list[nn.Module]]:
        """See :meth:`BlockSequence.block_parts`; what the cell has for one update goes with its block."""
        parts = super().block_parts()
        for index in range(self.num_updates):
            parts[index] += self.rla.step_parts(index)
        return parts

    def step(
        self, x: Tensor, h: Tensor | None, index: int, recurrent_conv: nn.Module | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block and, if there is one, the update after it."""
        block = getattr(self, str(index))
        if index >= self.num_updates:
            return block(x, h), h
        tap = Tap(readout=self.rla.readout(index))
        x = block(x, h, tap)
        h = downsample_hidden(h, block.stride)
        return x, recurrent_conv(self.rla.update(h, tap.value, index))

    def forward(
        self, x: Tensor, h: Tensor | None, recurrent_conv: nn.Module | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the group.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            h (Tensor, optional): State, shape (N, k, H, W); None for zeros.
            recurrent_conv (nn.Module, optional): W_r; None if the group has no update.

        Returns:
            tuple[Tensor, Tensor]: The group's output and the state after its last update.
        """
        for index in range(self.num_blocks):
            x, h = run_step(self, self.with_cp, self.step, x, h, index, recurrent_conv)
        return x, h

    def switch_to_deploy(self, starts: bool = False) -> None:
        """Fold the norms.

        Args:
            starts (bool): Whether the network starts here, so that the first block reads zeros.
        """
        for index in range(self.num_blocks):
            getattr(self, str(index)).switch_to_deploy(reads_zeros=starts and index == 0)
        if self.rla is not None:
            self.rla = self.rla.fused() or self.rla


@MODELS.register_module()
class RLAMobileNetV2(Backbone):
    """MobileNetV2 with recurrent layer aggregation; with ``rla_channels=0`` MobileNetV2 itself.

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Appendix
    B.2.1. A state ``h`` of ``rla_channels`` channels runs along the inverted residual blocks: it joins
    each after its expansion (:class:`InvertedResidual`) and takes in the block's residual ``y``,
    ``h = W_r * tanh(BN(h + W_o * y))``. The blocks of one width share the 1x1 convolution W_o
    (:class:`RLACell`), those of one resolution, or all, the depthwise W_r (``recurrent_convs``). After the
    last block ``relu6(BN(h))`` joins the input of the last convolution.

    Stages are numbered as in mmpretrain: seven groups of blocks, ``layer1`` to ``layer7``, and the last
    convolution, ``conv2``. Within them the names are those of torchvision's ResNet (``conv1``, ``bn1``,
    ``layer2.0.conv3.weight``), as an inverted residual block has the three convolutions of a bottleneck:
    unlike the positions of the libraries' MobileNets (``layer1.0.conv.0.conv``), they do not depend on
    whether a block expands. What RLA adds is called ``..._hidden``, ``hidden_norm``, ``rla`` and
    ``recurrent_convs``; all else has the shapes of the plain network's.

    Args:
        width_mult (float): Multiplier of all widths but the state's. Defaults to 1.0.
        rla_channels (int): Channels k of the recurrent state, 0 for the plain network. Defaults to 32.
        recurrent_sharing (str): ``'stage'``: one W_r for each of the five stages of the paper, which
            start at ``layer1``, 2, 3, 4 and 6; ``'network'``: one for all of them, as the authors'
            released code has it. Defaults to 'stage'.
        attention (str or dict, optional): Channel attention on the residuals: ``'eca'``, with a kernel
            of 1 for fewer than 96 channels, else 3; ``'se'``; or a dict with one of these as ``type`` and
            its arguments. Defaults to None.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return: 0 to 6 for the groups, 7 for the last convolution
            with its 1280 channels. Stages behind the last are not built. Defaults to (1, 2, 4, 6), the
            last group of each resolution from stride 4 to stride 32.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages with their
            recurrent parts; a shared W_r is frozen with the last group that uses it. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message names it, its value and what is
            allowed.

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

    #: Expansion, channels, blocks and stride of each group.
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
        recurrent_sharing: str = 'stage',
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
        check_choice('recurrent_sharing', recurrent_sharing, ('stage', 'network'))
        self.width_mult = width_mult
        self.rla_channels = rla_channels
        self.recurrent_sharing = recurrent_sharing
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
    ) -> RLAGroup:
        blocks = []
        for i in range(num_blocks):
            channels = in_channels if i == 0 else out_channels
            blocks.append(
                InvertedResidual(
                    channels,
                    channels * expansion,
                    out_channels,
                    stride=stride if i == 0 else 1,
                    hidden_channels=self.rla_channels,
                    attention=self._build_attention(out_channels),
                    norm_layer=norm_layer,
                )
            )
        # what nothing reads is not built: its parameters would never get a gradient
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
        return RLAGroup(blocks, cell, self.with_cp)

    def _build_attention(self, channels: int) -> ChannelGate | None:
        cfg = dict(type='eca') if self.attention == 'eca' else self.attention
        if isinstance(cfg, dict) and cfg.get('type') == 'eca':
            cfg = {'kernel_size': eca_kernel_size(channels), **cfg}
        return build_attention(cfg, channels, stage=0)

    def _build_recurrent_convs(self) -> None:
        """One W_r for all groups that share it, in ``recurrent_convs``."""
        stages = self.recurrent_stages if self.recurrent_sharing == 'stage' else [0] * len(self.groups)
        k = self.rla_channels
        updating = [i for i, name in enumerate(self.groups) if getattr(self, name).rla is not None]
        #: Group -> index of its W_r, for groups that update the state.
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
        """See :meth:`Backbone.stage_modules`; a shared W_r belongs to the last group that uses it."""
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
        """See :meth:`Backbone.stage_layers`; a shared W_r belongs to the first group that uses it."""
        layers = super().stage_layers(stage)
        if stage - 1 in self.recurrent_index:
            layers[0].append(self.recurrent_convs[self.recurrent_index[stage - 1]])
        return layers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        h = None  # zeros, at no cost
        outputs = []
        for i, name in enumerate(self.groups):
            index = self.recurrent_index.get(i)
            x, h = getattr(self, name)(x, h, None if index is None else self.recurrent_convs[index])
            if i in self.out_indices:
                outputs.append(x)
        if self.ends:
            x = self.conv2(x)
            if self.conv2_hidden is not None:
                x += self.conv2_hidden(self.relu(self.hidden_norm(h)))
            outputs.append(self.relu(self.bn2(x)))
        return tuple(outputs)

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for i, name in enumerate(self.groups):
            getattr(self, name).switch_to_deploy(starts=i == 0)
        if self.ends:
            self.conv2, self.conv2_hidden, self.bn2 = fuse_norm_of_sum(
                self.conv2, self.conv2_hidden, self.bn2
            )
