"""DR-ResNet: ResNets with blocks in gated loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.loop_backbone import GATE_RATE, LoopBackbone
from mmrecur.models.backbones.per_stage import check_per_stage, one_per_stage
from mmrecur.models.layers.common.residual import BasicBlock, Bottleneck, NormLayer
from mmrecur.registry import MODELS


@MODELS.register_module()
class DRResNet(LoopBackbone):
    """ResNet with fewer blocks, each of which runs as often as an image needs.

    Guo, Yu, Wu, Liang, Qin and Yan, *Dynamic Recursive Neural Network*, CVPR 2019. The first block of a
    stage changes resolution and width and runs once. The other blocks run in loops of up to ``loops``
    iterations (:class:`LoopBlock`). Before each iteration a gate decides for each image whether it passes or
    leaves the loop. With rate t a loop of l iterations runs ``t + t**2 + ... + t**l`` times on average; with
    ``gate_position='after'`` it runs ``1 + t + ... + t**(l - 1)`` times.

    Outside loops, parameters are named as in torchvision's ResNet (``layer3.0.conv1.weight``). Those of a
    loop are ``layer3.1.block.conv1.weight``, ``layer3.1.block.bn1.0.weight`` (norm of the first iteration)
    and ``layer3.1.gate.fc1.weight``.

    Arguments for the rows of the paper's Table 3:

    ============================  ============================================
    R-ResNet 53                   ``gated=False, loop_norm='shared'``
    R-ResNet 53, L                ``gated=False, loop_norm='lvbn'``
    R-ResNet 53, L and G          ``loop_norm='lvbn'``
    R-ResNet 53, L, G and I       none (DR-ResNet 53)
    ============================  ============================================

    Args:
        depth (int, optional): 35, 44, 47, 53 or 65 for ImageNet; 16, 32, 40, 54, 58, 66 or 74 for CIFAR.
            None if ``blocks`` and ``loops`` are given. Defaults to 53.
        blocks (Sequence[int], optional): Number of blocks in each stage. Defaults to None: that of
            ``depth``.
        loops (Sequence[int], optional): Maximum number of iterations of the blocks in each stage; the first
            block of a stage always runs once. Defaults to None: that of ``depth``.
        stem (str, optional): ``'imagenet'``: a 7x7 convolution and max pooling, each with stride 2, followed
            by bottlenecks. ``'cifar'``, for images of about 32x32 pixels: a 3x3 convolution with stride 1,
            followed by basic blocks with parameter-free shortcuts. Defaults to None: that of ``depth``, or
            'imagenet' without a depth.
        style (str): Position of the stride in bottlenecks: ``'pytorch'`` for the 3x3 convolution, as in
            torchvision's ResNets; ``'caffe'`` for the first 1x1 convolution, as the multiply-adds in the
            paper's Table 2 imply. Defaults to 'pytorch'.
        gated (bool): Whether gates let images leave the loops. Defaults to True.
        loop_norm (str, optional): ``'shared'``, ``'lvbn'`` or ``'i-lvbn'``, see :class:`LoopBlock`. Defaults
            to None: ``'i-lvbn'`` with gates and ``'lvbn'`` without.
        gate_channels (int): Hidden channels of the gates, 0 for a single linear layer. Defaults to 16.
        initial_rate (float): Probability with which a gate lets an image pass before training. Defaults to
            0.85.
        gate_position (str): ``'before'`` every iteration or ``'after'`` every iteration but the last, see
            :class:`LoopBlock`. Defaults to 'before'.
        loss_gate (Mapping, optional): Objective of the gates. A :class:`GateRateLoss` without
            ``target_rate`` gets that of Section 4.2: 0.8 for depth 35, otherwise 0.7. Defaults to
            ``dict(type='mmrecur.GateRateLoss', loss_weight=1.0)``.
        skip (bool): Whether evaluation leaves out images that have left a loop. Defaults to True.
        relaxation_rank (int or Sequence[int]): Rank of the residual that each iteration adds to the weights
            of its loop, for all stages or one for each. At full rank (the number of inner channels of the
            blocks; larger values are reduced to it) the iterations can compute what as many plain blocks
            compute. The inference form contains no residuals. Defaults to 0, the paper's network.
        base_channels (int, optional): Channels of the stem. Defaults to None: 64, or 16 with the CIFAR stem.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return. Stages after the last one are not built.
            Defaults to None: all, or the last one with the CIFAR stem.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages with their
            gates, which then decide without noise. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import DRResNet
        >>> model = DRResNet(depth=53).eval()
        >>> for feature in model(torch.rand(1, 3, 64, 64)):
        ...     print(tuple(feature.shape))
        (1, 256, 16, 16)
        (1, 512, 8, 8)
        (1, 1024, 4, 4)
        (1, 2048, 2, 2)
    """

    #: Depth -> blocks, loops and stem (Tables 1 and 2).
    arch_settings = {
        35: ((3, 3, 3, 2), (1, 1, 2, 2), 'imagenet'),
        44: ((3, 4, 5, 2), (1, 1, 5, 2), 'imagenet'),
        47: ((3, 4, 6, 2), (1, 1, 4, 2), 'imagenet'),
        53: ((3, 4, 8, 2), (1, 1, 3, 2), 'imagenet'),
        65: ((3, 4, 12, 2), (1, 1, 2, 2), 'imagenet'),
        16: ((3, 2, 2), (1, 2, 2), 'cifar'),
        32: ((9, 3, 3), (1, 4, 4), 'cifar'),
        40: ((9, 5, 5), (1, 2, 2), 'cifar'),
        54: ((18, 4, 4), (1, 5, 5), 'cifar'),
        58: ((18, 5, 5), (1, 4, 4), 'cifar'),
        66: ((18, 7, 7), (1, 3, 3), 'cifar'),
        74: ((18, 9, 9), (1, 2, 2), 'cifar'),
    }
    #: Target rates in Section 4.2 other than 0.7.
    target_rates = {35: 0.8}
    architectures = {f'dr-resnet{depth}': dict(depth=depth) for depth in (35, 44, 47, 53, 65)}

    def __init__(
        self,
        depth: int | None = 53,
        blocks: Sequence[int] | None = None,
        loops: Sequence[int] | None = None,
        stem: str | None = None,
        style: str = 'pytorch',
        gated: bool = True,
        loop_norm: str | None = None,
        gate_channels: int = 16,
        gate_position: str = 'before',
        initial_rate: float = 0.85,
        loss_gate: Mapping | None = GATE_RATE,
        skip: bool = True,
        relaxation_rank: int | Sequence[int] = 0,
        base_channels: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        blocks, loops, stem = self._architecture(depth, blocks, loops, stem)
        if out_indices is None:
            out_indices = (len(blocks) - 1,) if stem == 'cifar' else tuple(range(len(blocks)))
        super().__init__(
            num_stages=len(blocks),
            gated=gated,
            loop_norm=loop_norm,
            gate_channels=gate_channels,
            gate_position=gate_position,
            initial_rate=initial_rate,
            loss_gate=loss_gate,
            target_rate=self.target_rates.get(depth, 0.7),
            skip=skip,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_choice('style', style, ('pytorch', 'caffe'))
        base_channels = {'cifar': 16, 'imagenet': 64}[stem] if base_channels is None else base_channels
        check_int('base_channels', base_channels, 1)
        self.depth = depth
        self.blocks, self.loops = blocks, loops
        self.relaxation_rank = one_per_stage(
            'relaxation_rank', relaxation_rank, len(blocks), partial(check_int, minimum=0)
        )
        self.stem_kind = stem
        self.style = style
        self._build(base_channels, make_norm_layer(self.norm_cfg))
        self._finish()

    @classmethod
    def _architecture(
        cls,
        depth: int | None,
        blocks: Sequence[int] | None,
        loops: Sequence[int] | None,
        stem: str | None,
    ) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """Check blocks, loops and stem; take those that are None from the depth."""
        if depth is not None:
            check_choice('depth', depth, cls.arch_settings)
        elif blocks is None or loops is None:
            raise ValueError(f'depth=None with blocks={blocks!r}, loops={loops!r}, allowed: both given')
        if stem is not None:
            check_choice('stem', stem, ('imagenet', 'cifar'))
        defaults = cls.arch_settings.get(depth, (None, None, 'imagenet'))
        given = (blocks, loops, stem)
        blocks, loops, stem = (d if value is None else value for value, d in zip(given, defaults))
        check_per_stage('blocks', blocks)
        check_per_stage('loops', loops, len(blocks))
        return tuple(blocks), tuple(loops), stem

    def _build(self, base_channels: int, norm_layer: NormLayer) -> None:
        if self.stem_kind == 'cifar':
            self.conv1 = nn.Conv2d(self.in_channels, base_channels, 3, padding=1, bias=False)
            self.maxpool, stem_stride = nn.Identity(), 1
        else:
            self.conv1 = nn.Conv2d(self.in_channels, base_channels, 7, stride=2, padding=3, bias=False)
            self.maxpool, stem_stride = nn.MaxPool2d(3, stride=2, padding=1), 4
        self.bn1 = norm_layer(base_channels)
        self.relu = nn.ReLU(inplace=True)
        expansion = 1 if self.stem_kind == 'cifar' else 4
        inner = [base_channels * 2**i for i in range(self.num_stages)]
        channels = [base_channels, *(expansion * width for width in inner)]
        for i in range(self.num_stages):
            self._add_stage(self._make_blocks(i, channels[i], inner[i], channels[i + 1], norm_layer))
        self.out_channels = tuple(channels[i + 1] for i in self.out_indices)
        self.out_strides = tuple(stem_stride * 2**i for i in self.out_indices)

    def _make_blocks(
        self, index: int, in_channels: int, inner_channels: int, out_channels: int, norm_layer: NormLayer
    ) -> list[nn.Module]:
        """Build the blocks of a stage, all but the first in loops."""
        blocks: list[nn.Module] = []
        for i in range(self.blocks[index]):
            cin = in_channels if i == 0 else out_channels
            stride = 2 if i == 0 and index > 0 else 1
            block: nn.Module
            if self.stem_kind == 'cifar':
                block = BasicBlock(cin, out_channels, stride, padded_shortcut=True, norm_layer=norm_layer)
            else:
                block = Bottleneck(
                    cin,
                    inner_channels,
                    out_channels,
                    stride=stride,
                    norm_layer=norm_layer,
                    stride_first=self.style == 'caffe',
                )
            blocks.append(block if i == 0 else self._loop(block, out_channels, index))
        return blocks

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(super()._run_stem(x))
