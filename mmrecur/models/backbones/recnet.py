"""RecNet: wide maps computed by convolutions that are recurrent along the channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.backbones.per_stage import check_per_stage
from mmrecur.models.layers.channel_recurrence import ChannelRecurrentConv, RecurrentModule
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import NormLayer
from mmrecur.registry import MODELS

#: Stem -> its stride.
STEMS = {'cifar': 1, 'imagenet': 4}
#: Default initialisers with the linear activation: a gain of 1 keeps the scale of the states.
LINEAR_INIT = (
    dict(type='Kaiming', layer='Conv2d', nonlinearity='linear'),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


@MODELS.register_module()
class RecNet(Backbone):
    """RecNet, a network of channel-wise recurrent convolutions.

    Retsinas, Elafrou, Goumas and Maragos, *RecNets: Channel-wise Recurrent Convolutional Neural Networks*,
    BMVC 2019, https://arxiv.org/abs/1905.11910, Table 1. A stage has two recurrent modules, each of them a
    CRC layer (:class:`ChannelRecurrentConv`) and a transition block. Max pooling halves the resolution from
    stage to stage. Stage i splits its channels into d_i segments of S_i channels; a CRC layer widens them e
    times.
    The last transition of a stage has the number of channels that the next stage reads.

    ``arch`` takes the names of the paper's Table 3, such as ``'60-640'``: twice the sum of the steps, and the
    greatest width. ``'120-2880'`` and ``'30-60'`` come closest to the two networks of Table 4, for which the
    paper does not give segments: the first has 4 % fewer parameters than printed, the second is wider than
    its name says. ``'small'``, ``'medium'`` and ``'large'`` are an extension of this package for large
    images. They have four stages with the stem of ResNet, strides from 4 to 32, and widths that double from
    stage to stage.

    Args:
        expansion (int, optional): e. Defaults to None: that of ``arch``.
        segments (Sequence[int], optional): S_i of each stage. Defaults to None: those of ``arch``.
        steps (Sequence[int], optional): d_i of each stage. Defaults to None: those of ``arch``.
        arch (str): Named network, a key of ``arch_settings``, for the arguments that are None. Defaults to
            ``'60-1280'``, the paper's RecNet(4, 8, 16, 32, 10, 10, 10).
        stem (str, optional): ``'cifar'``: a 3x3 convolution with stride 1; ``'imagenet'``: a 7x7 convolution
            and max pooling, each with stride 2. Defaults to None: that of ``arch``.
        kernel_size_x (int): Kernel size of W_x, 1 or 3. Defaults to 3.
        kernel_size_h (int): Kernel size of W_h, 1 or 3. Defaults to 3.
        activation (str): ``'relu'``, ``'shared_bn'``, ``'separate_bn'`` or ``'linear'``, see
            :class:`ChannelRecurrentConv`. Defaults to ``'separate_bn'``.
        recurrent (bool): False for grouped convolutions with the same parameters. Defaults to True.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return, 0 for the first. Stages after the last one
            are not built. Defaults to None: all.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages. Defaults to
            -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. With
            ``activation='linear'`` the default ones have the gain of a linear layer, so that the scale of the
            states neither grows nor vanishes. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import RecNet
        >>> model = RecNet(expansion=4, segments=(8, 16, 32), steps=(10, 10, 10)).eval()
        >>> for feature in model(torch.rand(1, 3, 32, 32)):
        ...     print(tuple(feature.shape))
        (1, 160, 32, 32)
        (1, 320, 16, 16)
        (1, 320, 8, 8)
    """

    #: Name -> expansion, channels of a segment and steps of each stage, stem.
    arch_settings = {
        '60-640': (4, (4, 8, 16), (10, 10, 10), 'cifar'),
        '90-960': (4, (4, 8, 16), (15, 15, 15), 'cifar'),
        '120-1280': (4, (4, 8, 16), (20, 20, 20), 'cifar'),
        '60-1280': (4, (8, 16, 32), (10, 10, 10), 'cifar'),
        '90-1920': (4, (8, 16, 32), (15, 15, 15), 'cifar'),
        '120-2560': (4, (8, 16, 32), (20, 20, 20), 'cifar'),
        '60-480': (4, (8, 8, 8), (5, 10, 15), 'cifar'),
        '90-640': (4, (8, 8, 8), (10, 15, 20), 'cifar'),
        '120-960': (4, (8, 8, 8), (10, 20, 30), 'cifar'),
        '60-960': (4, (16, 16, 16), (5, 10, 15), 'cifar'),
        '90-1280': (4, (16, 16, 16), (10, 15, 20), 'cifar'),
        '120-1920': (4, (16, 16, 16), (10, 20, 30), 'cifar'),
        '120-2880': (4, (24, 24, 24), (10, 20, 30), 'cifar'),
        '30-60': (4, (4, 8, 16), (5, 5, 5), 'cifar'),
        'small': (4, (6, 12, 24, 48), (8, 8, 8, 8), 'imagenet'),
        'medium': (4, (8, 16, 32, 64), (10, 10, 10, 10), 'imagenet'),
        'large': (4, (12, 24, 48, 96), (10, 10, 10, 10), 'imagenet'),
    }
    architectures = {f'recnet-{arch}': dict(arch=arch) for arch in ('small', 'medium', 'large')}

    def __init__(
        self,
        expansion: int | None = None,
        segments: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        arch: str = '60-1280',
        stem: str | None = None,
        kernel_size_x: int = 3,
        kernel_size_h: int = 3,
        activation: str = 'separate_bn',
        recurrent: bool = True,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        check_choice('arch', arch, self.arch_settings)
        given = (expansion, segments, steps, stem)
        chosen = [b if a is None else a for a, b in zip(given, self.arch_settings[arch])]
        expansion, segments, steps, stem = chosen
        self._check_sizes(expansion, segments, steps)
        check_choice('stem', stem, STEMS)
        if init_cfg is None and activation == 'linear':
            init_cfg = list(LINEAR_INIT)
        super().__init__(
            num_stages=len(segments),
            in_channels=in_channels,
            out_indices=tuple(range(len(segments))) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.expansion, self.segments, self.steps = expansion, tuple(segments), tuple(steps)
        norm_layer = make_norm_layer(self.norm_cfg)
        options = dict(
            kernel_size_x=kernel_size_x,
            kernel_size_h=kernel_size_h,
            activation=activation,
            recurrent=recurrent,
            norm_layer=norm_layer,
        )
        widths = [segment * d for segment, d in zip(segments, steps)]
        widths.append(widths[-1])
        self._make_stem(stem, widths[0], norm_layer)
        # ceil_mode keeps the last row of an odd size, as a convolution with stride 2 does
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        for i in range(self.num_stages):
            modules = []
            for out_channels in widths[i : i + 2]:
                crc = ChannelRecurrentConv(segments[i], expansion * segments[i], steps[i], **options)
                modules.append(RecurrentModule(crc, out_channels, norm_layer, with_cp))
            self.add_module(f'layer{i + 1}', nn.Sequential(*modules))
        self.out_channels = tuple(widths[i + 1] for i in self.out_indices)
        self.out_strides = tuple(STEMS[stem] * 2**i for i in self.out_indices)
        self._freeze()

    @staticmethod
    def _check_sizes(expansion: Any, segments: Any, steps: Any) -> None:
        check_int('expansion', expansion, 1)
        check_per_stage('segments', segments)
        check_per_stage('steps', steps)
        if len(segments) != len(steps):
            raise ValueError(
                f'steps={steps!r} with segments={segments!r}, allowed: two sequences of the same length'
            )

    def _make_stem(self, stem: str, channels: int, norm_layer: NormLayer) -> None:
        if stem == 'imagenet':
            self.conv1 = nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, channels, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv1, self.bn1] if stage == 0 else [getattr(self, f'layer{stage}')]

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """See :meth:`Backbone.stage_layers`."""
        if stage == 0:
            return super().stage_layers(stage)
        return [[module] for module in getattr(self, f'layer{stage}')]

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def _run_stage(self, index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super()._run_stage(index, self.pool(x) if index else x, state)

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for i in range(self.num_stages):
            for module in getattr(self, f'layer{i + 1}'):
                module.switch_to_deploy()
