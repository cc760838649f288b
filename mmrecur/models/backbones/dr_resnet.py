"""DR-ResNet: ResNets whose blocks run in loops that samples leave when a gate says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmrecur.models.backbones.base import make_norm_layer
from mmrecur.models.backbones.recursive_backbone import GATE_RATE, RecursiveBackbone, check_per_stage
from mmrecur.models.layers.common.checks import check_choice, check_flag, check_int
from mmrecur.models.layers.common.residual import BasicBlock, Bottleneck, NormLayer
from mmrecur.registry import MODELS


@MODELS.register_module()
class DRResNet(RecursiveBackbone):
    """ResNet with dynamic recursion: fewer blocks, each run as often as an image needs.

    Guo, Yu, Wu, Liang, Qin and Yan, *Dynamic Recursive Neural Network*, CVPR 2019. The first block of a
    stage changes resolution and width and is never recursive; the others of a stage run ``loops`` times at
    most. Before each iteration a gate decides for each image whether it goes on or leaves the loop
    (:class:`RecursiveBlock`). With rate t a loop of l runs ``t + t**2 + ... + t**l`` times on average, with
    ``gate_position='after'`` ``1 + t + ... + t**(l - 1)`` times.

    Outside the loops parameters are named as in torchvision's ResNet (``layer3.0.conv1.weight``), inside
    ``layer3.1.block.conv1.weight``, ``layer3.1.block.bn1.0.weight`` for the norm of the first iteration and
    ``layer3.1.gate.fc1.weight``.

    The rows of the paper's Table 3:

    ============================  =======================================
    R-ResNet 53                   ``gated=False, norm='shared'``
    R-ResNet 53, L                ``gated=False, norm='lvbn'``
    R-ResNet 53, L and G          ``norm='lvbn'``
    R-ResNet 53, L, G and I       DR-ResNet 53
    ============================  =======================================

    Args:
        depth (int, optional): 35, 44, 47, 53 or 65 for ImageNet; 16, 32, 40, 54, 58, 66 or 74 for images of
            about 32x32 pixels: a 3x3 stem, basic blocks, shortcuts without parameters, three stages. None if
            ``blocks`` and ``loops`` are given. Defaults to 53.
        blocks (Sequence[int], optional): Blocks in each stage. Defaults to None: those of ``depth``.
        loops (Sequence[int], optional): Iterations at most of each stage's blocks but the first; 1 for plain
            blocks. Defaults to None: those of ``depth``.
        small_images (bool, optional): The form for small images. Defaults to None: that of ``depth``; False
            without.
        style (str): Where bottlenecks have their stride: ``'pytorch'`` on the 3x3 convolution, as
            torchvision's ResNets, ``'caffe'`` on the first 1x1, as the multiply-adds in the paper's Table 2
            imply. Defaults to 'pytorch'.
        gated (bool): Whether gates let samples leave a loop. Defaults to True.
        norm (str, optional): ``'shared'``, ``'lvbn'`` or ``'i-lvbn'``, see :class:`RecursiveBlock`. Defaults
            to None: ``'i-lvbn'`` with gates and ``'lvbn'`` without.
        gate_channels (int): Hidden channels of the gates, 0 for a single linear layer. Defaults to 16.
        initial_rate (float): Share of samples that a gate lets pass before training. Defaults to 0.85.
        gate_position (str): ``'before'`` every iteration, the first included, or ``'after'`` every iteration
            but the last, see :class:`RecursiveBlock`. Defaults to 'before'.
        loss_gate (Mapping, optional): Objective of the gates' rates. Without ``target_rate`` it has the one
            of Section 4.2: 0.8 for depth 35, else 0.7. Defaults to
            ``dict(type='mmrecur.GateRateLoss', loss_weight=1.0)``.
        skip (bool): Whether evaluation leaves out samples that have left a loop. Defaults to True.
        base_channels (int, optional): Channels of the stem. Defaults to None: 64, 16 for small images.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Stages to return. Stages behind the last are not built.
            Defaults to None: all, for small images the last.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i also the first i stages with their gates, which
            then decide without noise. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong; the message names it, its value and what is
            allowed.

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

    #: Depth -> blocks, loops and whether for small images (Tables 1 and 2).
    arch_settings = {
        35: ((3, 3, 3, 2), (1, 1, 2, 2), False),
        44: ((3, 4, 5, 2), (1, 1, 5, 2), False),
        47: ((3, 4, 6, 2), (1, 1, 4, 2), False),
        53: ((3, 4, 8, 2), (1, 1, 3, 2), False),
        65: ((3, 4, 12, 2), (1, 1, 2, 2), False),
        16: ((3, 2, 2), (1, 2, 2), True),
        32: ((9, 3, 3), (1, 4, 4), True),
        40: ((9, 5, 5), (1, 2, 2), True),
        54: ((18, 4, 4), (1, 5, 5), True),
        58: ((18, 5, 5), (1, 4, 4), True),
        66: ((18, 7, 7), (1, 3, 3), True),
        74: ((18, 9, 9), (1, 2, 2), True),
    }
    #: Target rates of Section 4.2 that are not 0.7.
    target_rates = {35: 0.8}
    architectures = {f'dr-resnet{depth}': dict(depth=depth) for depth in (35, 44, 47, 53, 65)}

    def __init__(
        self,
        depth: int | None = 53,
        blocks: Sequence[int] | None = None,
        loops: Sequence[int] | None = None,
        small_images: bool | None = None,
        style: str = 'pytorch',
        gated: bool = True,
        norm: str | None = None,
        gate_channels: int = 16,
        gate_position: str = 'before',
        initial_rate: float = 0.85,
        loss_gate: Mapping | None = GATE_RATE,
        skip: bool = True,
        base_channels: int | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        blocks, loops, small = self._architecture(depth, blocks, loops, small_images)
        if out_indices is None:
            out_indices = (len(blocks) - 1,) if small else tuple(range(len(blocks)))
        super().__init__(
            num_stages=len(blocks),
            gated=gated,
            norm=norm,
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
        width = (16 if small else 64) if base_channels is None else base_channels
        check_int('base_channels', width, 1)
        self.depth = depth
        self.blocks, self.loops = blocks, loops
        self.small_images = small
        self.style = style
        norm_layer = make_norm_layer(self.norm_cfg)
        kernel_size, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = None if small else nn.MaxPool2d(3, stride=2, padding=1)

        self.stages: list[str] = []
        channels, widths = width, []
        for i in range(self.num_stages):
            channels = self._make_stage(i, channels, width * 2**i, norm_layer)
            widths.append(channels)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple((1 if small else 4) * 2**i for i in self.out_indices)
        self._finish()

    @classmethod
    def _architecture(
        cls,
        depth: int | None,
        blocks: Sequence[int] | None,
        loops: Sequence[int] | None,
        small_images: bool | None,
    ) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Blocks and loops of each stage, and whether the network is for small images."""
        if depth is not None:
            check_choice('depth', depth, cls.arch_settings)
        elif blocks is None or loops is None:
            raise ValueError(f'depth=None with blocks={blocks!r}, loops={loops!r}, allowed: both given')
        if small_images is not None:
            check_flag(small_images=small_images)
        defaults = cls.arch_settings.get(depth, (blocks, loops, False))
        blocks, loops = (defaults[i] if given is None else given for i, given in enumerate((blocks, loops)))
        check_per_stage('blocks', blocks)
        check_per_stage('loops', loops, len(blocks))
        return tuple(blocks), tuple(loops), bool(defaults[2] if small_images is None else small_images)

    def _make_stage(self, index: int, in_channels: int, width: int, norm_layer: NormLayer) -> int:
        """Add a stage; return its output channels."""
        channels = width if self.small_images else 4 * width
        stride = 1 if index == 0 else 2
        blocks: list[nn.Module] = []
        for i in range(self.blocks[index]):
            cin, step = (in_channels, stride) if i == 0 else (channels, 1)
            if self.small_images:
                block = BasicBlock(cin, channels, step, padded_shortcut=True, norm_layer=norm_layer)
            else:
                block = Bottleneck(
                    cin,
                    width,
                    channels,
                    stride=step,
                    norm_layer=norm_layer,
                    stride_first=self.style == 'caffe',
                )
            blocks.append(block if i == 0 else self._loop(block, channels, self.loops[index]))
        self._add_stage(blocks)
        return channels

    def _stem(self, x: Tensor) -> Tensor:
        x = super()._stem(x)
        return x if self.maxpool is None else self.maxpool(x)
