"""RecNet: wide maps, computed by convolutions that are recurrent along the channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.channel_recurrence.conv import ChannelRecurrentConv, NormLayer, RecurrentModule
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.registry import MODELS

#: Stride of each stem.
STEMS = {'cifar': 1, 'imagenet': 4}


@MODELS.register_module()
class RecNet(Backbone):
    """RecNet.

    Retsinas, Elafrou, Goumas and Maragos, *RecNets: Channel-wise Recurrent Convolutional Neural Networks*,
    BMVC 2019, https://arxiv.org/abs/1905.11910, Table 1: stages of two recurrent modules, each a CRC layer
    (:class:`~mmrecur.models.layers.ChannelRecurrentConv`) and a transition block, with
    max pooling between the stages. Stage i works on d_i segments of S_i channels, which CRC layers
    widen e times; its last transition has as many channels as the next stage reads.

    The names of Table 3 are ``'60-640'`` (twice the sum of the steps, and the greatest width) and so on.
    ``'120-2880'`` and ``'30-60'`` are the nearest to the two of Table 4, whose segments the paper does not
    give: the first has 4 % fewer parameters than it says, the second is wider than its name. The networks of
    four stages, ``'small'``, ``'medium'`` and ``'large'``, are an extension of this package for large images:
    ResNet's stem, strides 4 to 32 and widths that double from stage to stage.

    Args:
        expansion (int, optional): e. Defaults to that of ``arch``.
        segments (Sequence[int], optional): S_i of each stage. Defaults to those of ``arch``.
        steps (Sequence[int], optional): d_i of each stage. Defaults to those of ``arch``.
        arch (str): Named network, a key of ``arch_settings``, whose values stand where no others are given.
            Defaults to ``'60-1280'``, RecNet(4, 8, 16, 32, 10, 10, 10).
        stem (str, optional): ``'cifar'``, a 3x3 convolution, or ``'imagenet'``, a 7x7 convolution and max
            pooling of stride 2 each. Defaults to that of ``arch``.
        kernel_size_x (int): Kernel size of W_x, 1 or 3. Defaults to 3.
        kernel_size_h (int): Kernel size of W_h, 1 or 3. Defaults to 3.
        activation (str): ``'relu'``, ``'shared_bn'``, ``'separate_bn'`` or ``'linear'``. Defaults to
            ``'separate_bn'``.
        recurrent (bool): False for grouped convolutions with the same parameters. Defaults to True.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return, 0 for the first. Stages behind the last
            are not built. Defaults to all.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`; the default for
            ``activation='linear'`` has the gain of a linear layer, so that states neither grow nor fade.
            Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message names it, its value and what is
            allowed.

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

    #: Expansion, channels of the segments, steps, stem.
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
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d', nonlinearity='linear'),
                dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            ]
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
        widths = [segment * d for segment, d in zip(segments, steps)]
        self._make_stem(stem, widths[0], norm_layer)
        # ceil_mode: an odd size keeps its last row, as with a convolution of stride 2
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        options = dict(
            kernel_size_x=kernel_size_x,
            kernel_size_h=kernel_size_h,
            activation=activation,
            recurrent=recurrent,
            norm_layer=norm_layer,
        )
        outputs = [*widths[1:], widths[-1]]
        for i in range(self.num_stages):
            stage = []
            for out_channels in (widths[i], outputs[i]):
                crc = ChannelRecurrentConv(segments[i], expansion * segments[i], steps[i], **options)
                stage.append(RecurrentModule(crc, out_channels, norm_layer, with_cp))
            self.add_module(f'layer{i + 1}', nn.Sequential(*stage))
        self.out_channels = tuple(outputs[i] for i in self.out_indices)
        self.out_strides = tuple(STEMS[stem] * 2**i for i in self.out_indices)
        self._freeze()

    @staticmethod
    def _check_sizes(expansion: Any, segments: Any, steps: Any) -> None:
        check_int('expansion', expansion, 1)
        for name, value in (('segments', segments), ('steps', steps)):
            is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            if not is_list or not value or not all(type(v) is int and v > 0 for v in value):
                raise ValueError(f'{name}={value!r}, allowed: a positive integer for each stage')
        if len(segments) != len(steps):
            raise ValueError(f'steps={steps!r} with segments={segments!r}, allowed: as many as those')

    def _make_stem(self, stem: str, channels: int, norm_layer: NormLayer) -> None:
        large = stem == 'imagenet'
        kernel_size = 7 if large else 3
        self.conv1 = nn.Conv2d(
            self.in_channels,
            channels,
            kernel_size,
            stride=2 if large else 1,
            padding=kernel_size // 2,
            bias=False,
        )
        self.bn1 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        return [self.conv1, self.bn1] if stage == 0 else [getattr(self, f'layer{stage}')]

    def stage_layers(self, stage: int) -> list[list[nn.Module]]:
        """See :meth:`Backbone.stage_layers`."""
        if stage == 0:
            return super().stage_layers(stage)
        return [[module] for module in getattr(self, f'layer{stage}')]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Backbone.forward`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for i in range(self.num_stages):
            if i:
                x = self.pool(x)
            x = getattr(self, f'layer{i + 1}')(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for i in range(self.num_stages):
            for module in getattr(self, f'layer{i + 1}'):
                module.switch_to_deploy()
