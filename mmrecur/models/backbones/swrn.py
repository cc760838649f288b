"""SWRN, a Wide ResNet whose layers share template banks, and the plain Wide ResNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.models.layers.template_bank import (
    COEFFICIENT_INITS,
    LayerPosition,
    TemplateBank,
    TemplateStage,
    WideBasicBlock,
    WideBottleneck,
)
from mmrecur.models.losses.auxiliary import AuxiliaryObjective
from mmrecur.models.losses.recurrence import RECURRENCE
from mmrecur.registry import MODELS


@MODELS.register_module()
class SWRN(AuxiliaryObjective, Backbone):
    """Wide ResNet whose layers take their weights from template banks.

    Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019,
    https://arxiv.org/abs/1902.09701. The weights of layers of equal shape are linear combinations of the
    templates of a bank. With fewer templates than layers, the network has fewer parameters. Layers with
    parallel coefficients compute the same, and can be tied into a loop.

    There are two networks:

    - ``depth = 6 n + 4``: three stages of strides 1, 2 and 4 for small images, with pre-activated basic
      blocks. The layers of a stage share one bank, except those of the first block (Section 4.1). A final
      norm and ReLU follow the third stage.
    - ``depth`` 50, 101 or 152: four stages for large images, with bottlenecks and torchvision's names
      (``wide_resnet50_2``). Each stage has a bank for each of the three convolutions of its blocks (Section
      4.2). Only ``conv1`` of the first block does not share, because its input has another width.

    Args:
        depth (int): Number of layers. Defaults to 28.
        width (int): Factor of the widths; with bottlenecks, of the inner widths. Defaults to 10.
        num_templates (int, str or None): Number of templates per bank, at most the number of layers in the
            largest group; a smaller group has one per layer. ``'per_layer'`` gives each bank one template per
            layer, the paper's SWRN-L-w. None disables sharing and gives the plain Wide ResNet. Defaults to
            'per_layer'.
        dropout (float): Dropout probability between the convolutions of a basic block. Defaults to 0.
        coefficient_init (str): ``'orthogonal'``, ``'identity'`` or ``'sparse'``, see
            :func:`initial_coefficients`. Defaults to 'orthogonal'.
        loss_recurrence (dict, optional): Auxiliary loss that makes layers similar (Section 3.2), such as
            ``dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01)``. It needs
            ``custom_hooks=[dict(type='mmrecur.AuxiliaryLossHook')]``. Defaults to None.
        tied_layers (dict, optional): Layers that are tied (the paper calls this folding): by stage and bank,
            the row of coefficients that each layer uses, such as
            ``dict(layer2=dict(bank=[0, 1, 0, 1, 0, 1]))``. ``tools/model_converters/tie_layers.py`` writes
            this option. Defaults to None.
        base_channels (int, optional): Number of stem channels. Defaults to None: 16, or 64 with bottlenecks.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return, 0 for the first. Later stages are not built.
            Defaults to None, all stages.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            banks. Defaults to -1.
        norm_cfg (dict, optional): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode during training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass to save memory. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import SWRN
        >>> model = SWRN(depth=28, width=4, num_templates=2).eval()
        >>> [tuple(feature.shape) for feature in model(torch.rand(1, 3, 32, 32))]
        [(1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8)]
    """

    loss_name = 'loss_recurrence'
    loss_purpose = 'the recurrence of its layers'

    #: Number of blocks in each stage of the four-stage networks.
    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    expansion = 4
    architectures = {f'swrn-{depth}-2': dict(depth=depth, width=2) for depth in (50, 101, 152)}
    #: No weight decay for coefficients, as in the paper, nor for the scales of tied layers.
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
        tied_layers: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
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
            raise ValueError('loss_recurrence with num_templates=None, allowed: None, or num_templates set')
        self._build_objective(loss_recurrence, RECURRENCE)
        self.depth = depth
        self.width = width
        self.num_templates = num_templates
        self.dropout = dropout
        norm_layer = make_norm_layer(self.norm_cfg)
        self._build_stem(base_channels, norm_layer)

        channels = self._build_stages(blocks, base_channels, coefficient_init, tied_layers, norm_layer)
        # the final norm follows the third stage, which is not built if out_indices does not include it
        has_final_norm = not self.has_bottlenecks and self.num_stages == len(blocks)
        self.final_norm = norm_layer(channels[-1]) if has_final_norm else None

        first_stride = 4 if self.has_bottlenecks else 1
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(first_stride * 2**i for i in self.out_indices)
        self._freeze()
        self._finish_objective()

    @classmethod
    def _blocks_of(cls, depth: Any, num_templates: Any) -> tuple[int, ...]:
        """Return the number of blocks in each stage; raise if the depth is not allowed."""
        if type(depth) is int and depth in cls.arch_settings:
            return cls.arch_settings[depth]
        least = 10 if num_templates is None else 16  # two blocks per stage: the first never shares
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

    def _check_tied_layers(self, tied_layers: Any) -> None:
        if tied_layers is None:
            return
        ok = isinstance(tied_layers, Mapping) and all(isinstance(v, Mapping) for v in tied_layers.values())
        if not ok or not set(tied_layers) <= set(self.stages):
            names = ', '.join(self.stages)
            raise ValueError(f'tied_layers={tied_layers!r}, allowed: a dict of {names}, each a dict of banks')

    def _build_stem(self, channels: int, norm_layer: NormLayer) -> None:
        if self.has_bottlenecks:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm_layer(channels)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 3, padding=1, bias=False)

    def _build_stages(
        self,
        blocks: Sequence[int],
        base_channels: int,
        coefficient_init: str,
        tied_layers: Mapping[str, Mapping[str, Sequence[int]]] | None,
        norm_layer: NormLayer,
    ) -> list[int]:
        """Build the stages and return the output channels of each."""
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        self._check_tied_layers(tied_layers)
        factor = self.expansion if self.has_bottlenecks else self.width
        channels = [base_channels, *(base_channels * 2**i * factor for i in range(self.num_stages))]
        for i, name in enumerate(self.stages):
            stage_blocks = self._make_blocks(i, blocks[i], channels[i], channels[i + 1], norm_layer)
            groups, rows = self._groups(stage_blocks), (tied_layers or {}).get(name)
            options = (self.num_templates, coefficient_init, rows, self.with_cp)
            self.add_module(name, TemplateStage(stage_blocks, groups, *options))
        return channels[1:]

    def _make_blocks(
        self, index: int, count: int, in_channels: int, out_channels: int, norm_layer: NormLayer
    ) -> list[WideBasicBlock | WideBottleneck]:
        """Return the blocks of a stage."""
        inputs = [in_channels] + [out_channels] * (count - 1)
        strides = [1 if index == 0 else 2] + [1] * (count - 1)
        if not self.has_bottlenecks:
            options = dict(dropout=self.dropout, norm_layer=norm_layer)
            return [WideBasicBlock(c, out_channels, s, **options) for c, s in zip(inputs, strides)]
        inner = out_channels // self.expansion * self.width
        return [
            WideBottleneck(c, inner, out_channels, stride=s, norm_layer=norm_layer)
            for c, s in zip(inputs, strides)
        ]

    def _groups(self, blocks: Sequence[nn.Module]) -> dict[str, list[LayerPosition]]:
        """Return the banks of a stage by name, each with the layers that share it."""
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
        """Return the banks by name, such as ``layer1.bank``.

        Returns:
            dict[str, TemplateBank]: Empty without sharing and in the inference form.
        """
        return {
            f'{stage}.{name}': getattr(getattr(self, stage), name)
            for stage in self.stages
            for name in getattr(self, stage).groups
        }

    def objective_input(self) -> list[TemplateBank]:
        """Return the banks."""
        return list(self.banks().values())

    def _run_stem(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.maxpool(self.relu(self.bn1(x))) if self.has_bottlenecks else x

    def _finish_outputs(self, outputs: list[Tensor], state: Any) -> list[Tensor]:
        if self.final_norm is not None:
            outputs[-1] = torch.relu(self.final_norm(outputs[-1]))
        return outputs

    def _switch_to_deploy(self) -> None:
        self._drop_objective()
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        if self.has_bottlenecks:
            self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
            return
        first = getattr(self.layer1, '0')
        if first.downsample is not None:  # no identity shortcut, so only bn1 reads the output of the stem
            self.conv1, first.bn1 = fuse_norm(self.conv1, first.bn1)
