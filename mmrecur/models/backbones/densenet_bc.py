"""DenseNet-BC for small images, plain or with bottleneck convolutions that share weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.rla.dense_block import SHARES, DenseBlock, Transition
from mmrecur.registry import MODELS


@MODELS.register_module()
class DenseNetBC(Backbone):
    """DenseNet-BC for CIFAR, plain, Shared-Lag or Shared-Ordinal.

    Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017, https://arxiv.org/abs/1608.06993:
    three dense blocks of (depth - 4) / 6 layers and a stem of twice the growth rate, without biases. The
    shared forms are from Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021,
    https://arxiv.org/abs/2110.11852, Section 3.2 and Appendix A.2. There the weights with which the 1x1
    convolution of a layer reads an earlier layer depend on the distance to that layer (lag) or on its
    position in the block (ordinal), see :class:`~mmrecur.models.layers.DenseBlock`. The weights for the
    input of the block, the 3x3 convolutions and the norms are not shared. Parameters have the names of
    torchvision's DenseNet.

    With 10 classes the plain network has 769,162 parameters, the shared ones 587,722. The paper prints
    0.80 M and 0.60 M. Its implementation keeps zeros for layers that have not run (Figure 5, note 3); norms
    over these would add 8,640 parameters without effect, 596,362 in total. The paper also states that the
    first block reads 3 + 2 k channels; here it reads 2 k, as in DenseNet.

    Args:
        depth (int): 6 n + 4. Defaults to 100.
        growth_rate (int): Channels k that a layer adds. Defaults to 12.
        share (str, optional): ``'lag'``, ``'ordinal'``, or None for the plain DenseNet. Defaults to None.
        compression (float): Fraction of the channels that a transition keeps. Defaults to 0.5.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Dense blocks to return, of strides 1, 2 and 4. Norm and ReLU follow the
            last one, as classifiers need them. Blocks after it are not built. Defaults to (0, 1, 2).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem, the first i dense blocks and the
            transitions before them. Defaults to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. The memory of a block then grows
            linearly with its depth instead of quadratically. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import DenseNetBC
        >>> model = DenseNetBC(depth=100, share='lag').eval()
        >>> for feature in model(torch.rand(1, 3, 32, 32)):
        ...     print(tuple(feature.shape))
        (1, 216, 32, 32)
        (1, 300, 16, 16)
        (1, 342, 8, 8)
    """

    def __init__(
        self,
        depth: int = 100,
        growth_rate: int = 12,
        share: str | None = None,
        compression: float = 0.5,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2),
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
        check_choice('share', share, SHARES)
        check_int('growth_rate', growth_rate, 1)
        check_int('depth', depth, 10 if share is None else 16)
        if (depth - 4) % 6:
            raise ValueError(f'depth={depth}, allowed: 6 n + 4, e.g. 40, 100, 250')
        if type(compression) not in (int, float) or not 0 < compression <= 1:
            raise ValueError(f'compression={compression!r}, allowed: a number in (0, 1]')
        self.depth = depth
        self.growth_rate = growth_rate
        self.share = share
        norm_layer = make_norm_layer(self.norm_cfg)
        channels = 2 * growth_rate
        self.conv0 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        widths = []
        for i in range(self.num_stages):
            if i:
                kept = max(1, int(channels * compression))
                self.add_module(f'transition{i}', Transition(channels, kept, norm_layer))
                channels = kept
            block = DenseBlock((depth - 4) // 6, channels, growth_rate, share, norm_layer, with_cp)
            self.add_module(f'denseblock{i + 1}', block)
            channels += block.num_layers * growth_rate
            widths.append(channels)
        self.final_norm = norm_layer(channels)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(2**i for i in self.out_indices)
        self._freeze()

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv0]
        modules = [getattr(self, f'transition{stage - 1}')] if stage > 1 else []
        modules.append(getattr(self, f'denseblock{stage}'))
        if stage == self.num_stages:
            modules.append(self.final_norm)
        return modules

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.conv0(x)

    def _run_stage(self, index: int, x: Tensor, state: None) -> tuple[Tensor, None]:
        if index:
            x = getattr(self, f'transition{index}')(x)
        return getattr(self, f'denseblock{index + 1}')(x), state

    def _finish_outputs(self, outputs: list[Tensor], state: None) -> list[Tensor]:
        outputs[-1] = torch.relu(self.final_norm(outputs[-1]))
        return outputs

    def _switch_to_deploy(self) -> None:
        for i in range(self.num_stages):
            if i:
                getattr(self, f'transition{i}').switch_to_deploy()
            getattr(self, f'denseblock{i + 1}').switch_to_deploy()
