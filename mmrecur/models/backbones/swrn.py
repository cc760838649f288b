"""SWRN: wide residual networks with soft parameter sharing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.template_bank.bank import (
    COEFFICIENT_INITS,
    TemplateBank,
    TemplateConv2d,
    check_rows,
)
from mmrecur.models.layers.template_bank.blocks import WideBasicBlock, WideBottleneck
from mmrecur.models.losses.objective import OwnObjective
from mmrecur.models.losses.recurrence import RECURRENCE
from mmrecur.registry import MODELS

#: Block and attribute of a layer.
Place = tuple[int, str]


class TemplateStage(Stage):
    """A stage: residual blocks, named ``0``, ``1``, ..., and the banks that their layers draw from.

    Args:
        blocks (Sequence[nn.Module]): The stage's blocks; what they share is replaced.
        groups (Mapping[str, Sequence[Place]]): For each bank its name in the stage and its layers.
        num_templates (int, str or None): See :class:`SWRN`.
        coefficient_init (str): See :func:`initial_coefficients`.
        rows (Mapping[str, Sequence[int]]): Which layers are tied, by bank, see :class:`TemplateBank`.
        with_cp (bool): Recompute each block in the backward pass.
    """

    def __init__(
        self,
        blocks: Sequence[WideBasicBlock | WideBottleneck],
        groups: Mapping[str, Sequence[Place]],
        num_templates: int | str | None,
        coefficient_init: str = 'orthogonal',
        rows: Mapping[str, Sequence[int]] | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp
        self.groups = {} if num_templates is None else {k: list(v) for k, v in groups.items() if v}
        unknown = set(rows or {}) - set(self.groups)
        if unknown:
            allowed = ', '.join(self.groups) or 'none, nothing is shared'
            raise ValueError(f'folding of {", ".join(sorted(unknown))}, allowed: {allowed}')
        for name, places in self.groups.items():
            layers = [getattr(blocks[block], layer) for block, layer in places]
            tied = (rows or {}).get(name)
            if tied is not None:
                check_rows(f'folding: {name}', tied, len(layers))
            most = len(layers) if tied is None else max(tied) + 1
            count = most if num_templates == 'per_layer' else min(num_templates, most)
            bank = TemplateBank(len(layers), count, layers[0].weight.shape, coefficient_init, tied)
            self.add_module(name, bank)
            for index, ((block, layer), conv) in enumerate(zip(places, layers)):
                options = dict(stride=conv.stride, padding=conv.padding)
                setattr(blocks[block], layer, TemplateConv2d(bank, index, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride).
        """
        weights: dict[Place, Tensor] = {}
        for name, places in self.groups.items():
            drawn = getattr(self, name)()  # outside what is recomputed: once per pass
            weights.update((place, drawn[i]) for i, place in enumerate(places))
        for i, block in enumerate(self.blocks):
            own = [weights.get((i, layer)) for layer in block.SHAREABLE]
            x = run_step(block, self.with_cp, block, x, own)
        return x

    def switch_to_deploy(self) -> None:
        """Give every layer its weight, fold the norms that follow a convolution."""
        for block in self.blocks:
            block.switch_to_deploy()
        for name in self.groups:
            delattr(self, name)
        self.groups = {}


@MODELS.register_module()
class SWRN(OwnObjective, Backbone):
    """Wide ResNet whose layers draw their weights from banks of templates, and the plain Wide ResNet.

    Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019,
    https://arxiv.org/abs/1902.09701. Layers of equal shape in a stage are combinations of the stage's
    templates: with fewer templates than layers the network is smaller, and layers with equal coefficients
    are one layer that runs several times.

    - ``depth = 6 n + 4``: the three-stage network for small images (strides 1, 2, 4), pre-activated basic
      blocks. The layers of a stage share, but for those of its first block (Section 4.1). Its last output
      is normed and activated, the others are as the stage leaves them.
    - ``depth`` 50, 101 or 152: the four-stage network for large images, with torchvision's names
      (``wide_resnet50_2``). Of each stage the three kinds of layers share, C -> B, B -> B and B -> C, each
      with its own bank (Section 4.2); only the first layer of a stage, which reads another width, does not.

    Args:
        depth (int): Number of layers. Defaults to 28.
        width (int): Factor of the widths, in the four-stage network of the inner ones. Defaults to 10.
        num_templates (int, str or None): Templates in each bank, at most as many as the largest group has
            layers (a smaller group has one per layer). ``'per_layer'``: one per layer in each, the
            paper's SWRN-L-w. None: no sharing, the plain Wide ResNet. Defaults to 'per_layer'.
        dropout (float): Probability of dropout between the convolutions of a block, three-stage networks
            only. Defaults to 0.
        coefficient_init (str): ``'orthogonal'``, ``'identity'`` (as many templates as layers) or
            ``'sparse'``, Appendix B. Defaults to 'orthogonal'.
        loss_recurrence (dict, optional): Recurrence regulariser of Section 3.2, e.g.
            ``dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01)``. It needs
            ``dict(type='mmrecur.AuxiliaryLossHook')`` among the config's hooks. Defaults to None.
        folding (dict, optional): Which layers of a folded network are tied, as the folding tool writes it:
            by stage and bank the row of coefficients of each layer, e.g.
            ``dict(layer2=dict(bank=[0, 1, 0, 1, 0, 1]))``. Defaults to None.
        base_channels (int, optional): Channels of the stem. Defaults to None: 16 and 64.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return. Stages behind the last are not built.
            Defaults to None: all.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages with their banks.
            Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message names it, its value and what is
            allowed.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import SWRN
        >>> model = SWRN(depth=28, width=4, num_templates=2).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8)]
    """

    objective = 'loss_recurrence'
    objective_aim = 'the recurrence of its layers'

    #: Blocks in each stage of the four-stage networks.
    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    expansion = 4
    architectures = {f'swrn-{depth}-2': dict(depth=depth, width=2) for depth in (50, 101, 152)}
    #: The paper's coefficients, and the factors of a folded network, have no weight decay.
    required_paramwise_cfg: Mapping[str, Any] = dict(
        custom_keys={'coefficients': dict(decay_mult=0.0), 'row_scales': dict(decay_mult=0.0)}
    )

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_templates: int | str | None = 'per_layer',
        dropout: float = 0.0,
        coefficient_init: str = 'orthogonal',
        loss_recurrence: dict | None = None,
        folding: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
        base_channels: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        blocks = self._blocks_of(depth, num_templates)
        super().__init__(
            num_stages=len(blocks),
            in_channels=in_channels,
            out_indices=tuple(range(len(blocks))) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.has_bottlenecks = depth in self.arch_settings
        check_int('width', width, 1)
        self._check_num_templates(num_templates, blocks)
        self._check_dropout(dropout)
        check_choice('coefficient_init', coefficient_init, COEFFICIENT_INITS)
        if base_channels is None:
            base_channels = 64 if self.has_bottlenecks else 16
        check_int('base_channels', base_channels, 1)
        if loss_recurrence is not None and num_templates is None:
            raise ValueError('loss_recurrence with num_templates=None, allowed: with templates')
        self._build_objective(loss_recurrence, RECURRENCE)
        self.depth = depth
        self.width = width
        self.num_templates = num_templates
        self.dropout = dropout
        norm_layer = make_norm_layer(self.norm_cfg)
        self._build_stem(base_channels, norm_layer)

        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        self._check_folding(folding)
        channels, stage_channels = base_channels, []
        for i, name in enumerate(self.stages):
            made, channels = self._make_blocks(i, blocks[i], channels, base_channels, norm_layer)
            rows = (folding or {}).get(name)
            groups = self._groups(made)
            self.add_module(name, TemplateStage(made, groups, num_templates, coefficient_init, rows, with_cp))
            stage_channels.append(channels)
        # what is built ends before it if the last stage is not asked for
        has_final_norm = not self.has_bottlenecks and self.num_stages == len(blocks)
        self.final_norm = norm_layer(channels) if has_final_norm else None

        first = 4 if self.has_bottlenecks else 1
        self.out_channels = tuple(stage_channels[i] for i in self.out_indices)
        self.out_strides = tuple(first * 2**i for i in self.out_indices)
        self._freeze()
        self._finish_objective()

    @classmethod
    def _blocks_of(cls, depth: Any, num_templates: Any) -> tuple[int, ...]:
        """Blocks in each stage."""
        if type(depth) is int and depth in cls.arch_settings:
            return cls.arch_settings[depth]
        least = 10 if num_templates is None else 16  # so that there is a block to share
        if type(depth) is not int or depth < least or depth % 6 != 4:
            large = ', '.join(map(str, cls.arch_settings))
            raise ValueError(f'depth={depth!r}, allowed: {least}, {least + 6}, ... (6 n + 4), or {large}')
        return ((depth - 4) // 6,) * 3

    def _check_num_templates(self, num_templates: Any, blocks: Sequence[int]) -> None:
        most = max(blocks) if self.has_bottlenecks else 2 * (max(blocks) - 1)
        is_count = type(num_templates) is int and 1 <= num_templates <= most
        if not is_count and num_templates not in (None, 'per_layer'):
            raise ValueError(
                f"num_templates={num_templates!r}, allowed: None, 'per_layer', an integer from 1 to {most} "
                '(the layers of the largest group)'
            )

    def _check_dropout(self, dropout: Any) -> None:
        is_number = isinstance(dropout, (int, float)) and not isinstance(dropout, bool)
        if not is_number or not 0 <= dropout < 1:
            raise ValueError(f'dropout={dropout!r}, allowed: a number from 0 to below 1')
        if dropout and self.has_bottlenecks:
            raise ValueError(f'dropout={dropout!r} with bottleneck blocks, allowed: 0')

    def _check_folding(self, folding: Any) -> None:
        if folding is None:
            return
        ok = isinstance(folding, Mapping) and all(isinstance(v, Mapping) for v in folding.values())
        if not ok or not set(folding) <= set(self.stages):
            raise ValueError(
                f'folding={folding!r}, allowed: a dict of {", ".join(self.stages)}, each a dict of banks'
            )

    def _build_stem(self, channels: int, norm_layer: NormLayer) -> None:
        if self.has_bottlenecks:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm_layer(channels)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 3, padding=1, bias=False)

    def _make_blocks(
        self, index: int, count: int, in_channels: int, base_channels: int, norm_layer: NormLayer
    ) -> tuple[list[WideBasicBlock | WideBottleneck], int]:
        """Blocks of a stage, and the channels that they give."""
        width = base_channels * 2**index
        strides = [1 if index == 0 else 2] + [1] * (count - 1)
        if not self.has_bottlenecks:
            out = width * self.width
            inputs = [in_channels] + [out] * (count - 1)
            options = dict(dropout=self.dropout, norm_layer=norm_layer)
            return [WideBasicBlock(c, out, s, **options) for c, s in zip(inputs, strides)], out
        out = width * self.expansion
        inputs = [in_channels] + [out] * (count - 1)
        return [
            WideBottleneck(c, width * self.width, out, stride=s, norm_layer=norm_layer)
            for c, s in zip(inputs, strides)
        ], out

    def _groups(self, blocks: Sequence[nn.Module]) -> dict[str, list[Place]]:
        """Which layers of a stage share a bank."""
        count = len(blocks)
        if not self.has_bottlenecks:
            return {'bank': [(i, layer) for i in range(1, count) for layer in ('conv1', 'conv2')]}
        return {
            'bank1': [(i, 'conv1') for i in range(1, count)],
            'bank2': [(i, 'conv2') for i in range(count)],
            'bank3': [(i, 'conv3') for i in range(count)],
        }

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1, self.bn1] if self.has_bottlenecks else [self.conv1]
        modules = [getattr(self, self.stages[stage - 1])]
        if stage == self.num_stages and self.final_norm is not None:
            modules.append(self.final_norm)
        return modules

    def banks(self) -> dict[str, TemplateBank]:
        """The banks by name.

        Returns:
            dict[str, TemplateBank]: ``layer1.bank`` and so on; none without sharing or in the inference form.
        """
        return {
            f'{stage}.{name}': getattr(getattr(self, stage), name)
            for stage in self.stages
            for name in getattr(self, stage).groups
        }

    def objective_input(self) -> list[TemplateBank]:
        """See :class:`OwnObjective`."""
        return list(self.banks().values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): Images, shape (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: Of each stage in ``out_indices`` its map, shape
            (N, C_i, H / stride_i, W / stride_i), sizes rounded up.
        """
        x = self.conv1(x)
        if self.has_bottlenecks:
            x = self.maxpool(self.relu(self.bn1(x)))
        outputs = []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outputs.append(x)
        if self.final_norm is not None:
            outputs[-1] = torch.relu(self.final_norm(x))
        return tuple(outputs)

    def _switch_to_deploy(self) -> None:
        self._drop_objective()
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        if self.has_bottlenecks:
            self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
            return
        first = getattr(self.layer1, '0')
        if first.downsample is not None:  # then nothing but its norm reads the stem
            self.conv1, first.bn1 = fuse_norm(self.conv1, first.bn1)
