"""RLA-ResNet: ResNets, ResNeXts and Wide ResNets with recurrent layer aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mmrecur.checks import check_choice, check_flag, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.backbones.plugins import Plugins, with_plugin_init
from mmrecur.models.layers.common.attention import CBAM, ECA, SqueezeExcite
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import DeepStem, NormLayer
from mmrecur.models.layers.rla.block import RLABottleneck
from mmrecur.models.layers.rla.cell import State
from mmrecur.models.layers.rla.settings import RLASettings
from mmrecur.models.layers.rla.stage import RLAStage, append_hidden
from mmrecur.registry import MODELS

#: Kernel size of ECA in each stage, as in the ECA-ResNets of the RLA authors.
ECA_KERNEL_SIZES = (5, 5, 5, 7)


def build_attention(
    cfg: str | dict | None, channels: int, stage: int, norm_layer: NormLayer = nn.BatchNorm2d
) -> nn.Module | None:
    """Build the attention of a block.

    Args:
        cfg (str or dict, optional): ``'se'``, ``'eca'``, ``'cbam'``, a dict with one of these as ``type``
            and the layer's arguments, or None.
        channels (int): Channels of the residual.
        stage (int): Index of the stage. It determines the default kernel size of ECA.
        norm_layer (Callable): Builds the ``spatial_norm`` of CBAM. Defaults to ``nn.BatchNorm2d``.

    Returns:
        nn.Module, optional: The layer. None without attention.

    Raises:
        ValueError, TypeError: If ``cfg`` does not describe an attention.
    """
    if cfg is None:
        return None
    allowed = (
        f"attention={cfg!r}, allowed: None, 'se', 'eca', 'cbam', dict(type='se', reduction=16), "
        "dict(type='eca', kernel_size=5), dict(type='cbam', spatial_norm=True)"
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
        if kind == 'cbam':
            return CBAM(channels, **args, norm_layer=norm_layer)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{allowed} ({error})') from error
    raise ValueError(allowed)


def _architectures() -> dict[str, dict]:
    """Return the arguments by name. A name without a depth takes the depth of the replaced backbone."""
    kinds = {
        'rla-resnet': {},
        'rla-se-resnet': dict(attention='se'),
        'rla-eca-resnet': dict(attention='eca'),
        'rla-cbam-resnet': dict(attention='cbam'),
    }
    named = {
        f'{kind}{depth}': dict(args, depth=depth, groups=1, base_width=64)
        for kind, args in kinds.items()
        for depth in (50, 101, 152)
    }
    resnext = {
        f'rla-resnext{depth}-{groups}x4d': dict(depth=depth, groups=groups, base_width=4)
        for depth, groups in ((50, 32), (101, 32), (101, 64))
    }
    wide = {f'rla-wide-resnet{depth}-2': dict(depth=depth, groups=1, base_width=128) for depth in (50, 101)}
    return {**kinds, **named, **resnext, **wide}


@MODELS.register_module()
class RLAResNet(Backbone):
    """ResNet, ResNeXt, SE-, ECA- or CBAM-ResNet with recurrent layer aggregation (RLA).

    Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852. A state
    ``h`` of ``rla_channels`` channels accompanies the blocks. Each block reads ``cat(x, h)`` and updates
    ``h`` through a cell that the blocks of a stage share (:class:`RLACell`). Parameters have the names of
    torchvision's ResNet (``layer1.0.conv1.weight``). RLA adds ``conv1_hidden`` in each block, ``rla`` in
    each stage and, with ``with_hidden``, ``hidden_norm``.

    The authors' code computes variant v3 where the paper describes v1, and v4 for v2. Their checkpoints need
    ``variant='v3'``.

    Arguments of the ablations in Table 6 (ResNet-50) and Table 11 (a CIFAR network):

    ==============================  ===============================================
    ResNet-50                       ``rla_channels=0``
    channel +32                     ``rla_channels=0, extra_channels=32``
    RLA-v1, unshared                ``share=None``
    RLA-v1, no exchange             ``exchange=False, with_hidden=True``
    RLA-v1, ConvLSTM                ``cell='lstm'`` (in the authors' code also ``'gru'``)
    RLA-v1, PostAct.                ``post_act=True``
    RLA-v1 to RLA-v6                ``variant='v1'`` to ``variant='v6'``
    ==============================  ===============================================

    Args:
        depth (int): 50, 101 or 152.
        rla_channels (int): Channels k of the state. 0 gives the plain network, without the options of the
            recurrent path. Defaults to 32.
        variant (str): ``'v1'`` to ``'v6'`` of Figure 4. It determines which map is aggregated (residual,
            output, shortcut) and whether the map joins the state before the recurrent convolution (v1, v3,
            v5) or after it. Defaults to 'v1', which the paper proposes.
        attention (str or dict, optional): Attention on the residuals: ``'se'``, ``'eca'``, ``'cbam'``, or a
            dict with one of these as ``type`` and arguments of the layer. Defaults to None.
        cell (str): Recurrent unit: ``'conv'``, ``'lstm'`` or ``'gru'``. The last two do not support v2, v4,
            v6 and ``post_act``. Defaults to 'conv', which the paper proposes.
        share (str, optional): ``'stage'``: the blocks of a stage share the convolutions of the cell. None:
            each block has its own. Defaults to 'stage'.
        exchange (bool): Whether blocks read the state. If False, only a classifier reads it, which requires
            ``with_hidden``. Defaults to True.
        post_act (bool): Compute ``h = tanh(BN(W_r * (h + W_o * s)))``. Not supported with v2, v4, v6.
            Defaults to False.
        plugins (list[dict], optional): MMCV's plugin layers, as in MMDetection's ResNets. Each dict has the
            ``cfg`` of the layer, its ``position`` and optionally ``stages``, four booleans (default: all).
            ``'after_conv3'`` stands for the residual of every block and excludes ``attention``:
            ``dict(type='ContextBlock', ratio=1 / 16)`` gives GCNet. ``'before_last_block'`` stands for the
            input of the last block of a stage: ``dict(type='NonLocal2d')``. Defaults to None.
        groups (int): Groups of the 3x3 convolutions (ResNeXt). Defaults to 1.
        base_width (int): Channels of a group in the first stage (ResNeXt-32x4d: ``groups=32,
            base_width=4``). With one group, as in torchvision, the 3x3 convolutions are ``base_width / 64``
            times as wide as in a ResNet (Wide ResNet-50-2: ``base_width=128``). Defaults to 64.
        base_channels (int): Channels of the stem. Stage i has ``4 * base_channels * 2**i`` output channels.
            Defaults to 64.
        extra_channels (int): Additional output channels of every stage, a multiple of ``4 * groups``. The
            3x3 convolutions get a quarter as many. Defaults to 0.
        deep_stem (bool): Use three 3x3 convolutions as stem (ResNet-D). Defaults to False.
        avg_down (bool): Use average pooling on strided shortcuts (ResNet-D). Defaults to False.
        style (str): ``'pytorch'`` puts strides on the 3x3 convolutions, ``'caffe'`` on the 1x1 convolutions
            before them, as required by weights converted from Caffe. Defaults to 'pytorch'.
        strides (Sequence[int]): Stride of the first block of each stage. Defaults to (1, 2, 2, 2).
        dilations (Sequence[int]): Dilation of the 3x3 convolutions of each stage. Defaults to (1, 1, 1, 1).
        with_hidden (bool): Append the state to the last output, for classifiers: ``cat(x, relu(BN(h)))``, or
            ``cat(x, h)`` where h is the output of an activation (``post_act`` and gated cells). Defaults to
            False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return. Stages after the last one are not built.
            Defaults to (0, 1, 2, 3).
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
    architectures = _architectures()
    classifier_options = dict(with_hidden=True)

    def __init__(
        self,
        depth: int,
        rla_channels: int = 32,
        variant: str = 'v1',
        attention: str | dict | None = None,
        cell: str = 'conv',
        share: str | None = 'stage',
        exchange: bool = True,
        post_act: bool = False,
        plugins: list[dict] | None = None,
        groups: int = 1,
        base_width: int = 64,
        base_channels: int = 64,
        extra_channels: int = 0,
        deep_stem: bool = False,
        avg_down: bool = False,
        style: str = 'pytorch',
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
        check_flag(deep_stem=deep_stem, avg_down=avg_down)
        self._check_layout(depth, style, strides=strides, dilations=dilations)
        width = self._checked_width(groups, base_width, base_channels, extra_channels)
        self.depth, self.style, self.avg_down = depth, style, avg_down
        self.rla_channels, self.with_hidden = rla_channels, with_hidden
        self.attention = attention
        self.plugins = Plugins(plugins or ())
        if plugins:
            self.init_cfg = with_plugin_init(self.init_cfg)
        self.recurrence = RLASettings(rla_channels, variant, cell, share, exchange, post_act, with_hidden)
        norm_layer = make_norm_layer(self.norm_cfg)
        self._build_stem(base_channels, deep_stem, norm_layer)

        widths = self._build_stages(
            base_channels, width, extra_channels, strides, dilations, groups, norm_layer
        )
        self.hidden_norm = self.recurrence.make_hidden_norm(norm_layer)
        widths[-1] += rla_channels if with_hidden else 0
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(4 * math.prod(strides[: i + 1]) for i in self.out_indices)
        self._freeze()

    @classmethod
    def _checked_width(cls, groups: int, base_width: int, base_channels: int, extra_channels: int) -> int:
        """Check the widths and return the inner channels of the first stage, without ``extra_channels``."""
        check_int('groups', groups, 1)
        check_int('base_width', base_width, 1)
        check_int('base_channels', base_channels, 2)
        check_int('extra_channels', extra_channels, 0)
        if groups == 1 and base_channels * base_width % 64:
            multiple = 64 // math.gcd(64, base_channels)
            raise ValueError(f'base_width={base_width} with groups=1, allowed: a multiple of {multiple}')
        if extra_channels % (cls.expansion * groups):
            multiple = cls.expansion * groups
            raise ValueError(f'extra_channels={extra_channels}, allowed: a multiple of {multiple}')
        return base_width * groups if groups > 1 else base_channels * base_width // 64

    @classmethod
    def _check_layout(cls, depth: int, style: str, **per_stage: Sequence[int]) -> None:
        check_choice('depth', depth, cls.arch_settings)
        check_choice('style', style, ('pytorch', 'caffe'))
        for name, value in per_stage.items():
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

    def _build_stages(
        self,
        base_channels: int,
        width: int,
        extra_channels: int,
        strides: Sequence[int],
        dilations: Sequence[int],
        groups: int,
        norm_layer: NormLayer,
    ) -> list[int]:
        """Build the stages and return the output channels of each."""
        self.stages = [f'layer{i + 1}' for i in range(self.num_stages)]
        channels = [base_channels]
        for i, name in enumerate(self.stages):
            inner = width * 2**i + extra_channels // self.expansion
            channels.append(base_channels * 2**i * self.expansion + extra_channels)
            shape = (channels[i], inner, channels[i + 1], strides[i], dilations[i], groups)
            self.add_module(name, self._make_stage(i, *shape, norm_layer))
        return channels[1:]

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
            RLABottleneck(
                in_channels if i == 0 else out_channels,
                inner_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                dilation=dilation,
                groups=groups,
                hidden_channels=self.recurrence.block_channels,
                attention=self._build_attention(index, out_channels, norm_layer),
                avg_down=self.avg_down,
                norm_layer=norm_layer,
                stride_first=self.style == 'caffe',
            )
            for i in range(num_blocks)
        ]
        is_last = index == self.num_stages - 1
        plugin = self.plugins.build('before_last_block', index, out_channels)
        return self.recurrence.make_stage(blocks, out_channels, is_last, norm_layer, self.with_cp, plugin)

    def _build_attention(self, stage: int, channels: int, norm_layer: NormLayer) -> nn.Module | None:
        attention = build_attention(self.attention, channels, stage, norm_layer)
        plugin = self.plugins.build('after_conv3', stage, channels)
        if attention is not None and plugin is not None:
            raise ValueError(
                f"attention={self.attention!r} with plugins of position='after_conv3', allowed: one of them"
            )
        return attention if plugin is None else plugin

    def plugin_layers(self) -> list[nn.Module]:
        """Return the layers built from ``plugins``, which :class:`PluginInit` initialises."""
        stages = [getattr(self, name) for name in self.stages]
        layers = [stage.before_last for stage in stages if stage.before_last is not None]
        for index, stage in enumerate(stages):
            if self.plugins.has('after_conv3', index):
                layers += [block.attention for block in stage.blocks]
        return layers

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.stem] if self.deep_stem else [self.conv1, self.bn1]
        modules = [getattr(self, self.stages[stage - 1])]
        if stage == self.num_stages and self.hidden_norm is not None:
            modules.append(self.hidden_norm)
        return modules

    def _run_stem(self, x: Tensor) -> Tensor:
        x = self.stem(x) if self.deep_stem else self.relu(self.bn1(self.conv1(x)))
        return self.maxpool(x)

    def _run_stage(self, index: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        return getattr(self, self.stages[index])(x, state)

    def _finish_outputs(self, outputs: list[Tensor], state: State) -> list[Tensor]:
        if self.with_hidden:
            outputs[-1] = append_hidden(outputs[-1], state, self.hidden_norm)
        return outputs

    def _switch_to_deploy(self) -> None:
        if self.deep_stem:
            self.stem.switch_to_deploy()
        else:
            self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for name in self.stages:
            getattr(self, name).switch_to_deploy()
        self.layer1[0].assume_zero_state()
