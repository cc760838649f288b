"""Dual path ResNet for small images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.stage import Stage
from mmrecur.models.layers.rla.dual_path_block import DualPathBlock
from mmrecur.registry import MODELS


@MODELS.register_module()
class DualPathResNet(Backbone):
    """Pre-activated bottleneck ResNet for CIFAR with a densely connected path beside the residual one.

    The network is compared with RLA-ResNet-164 in Table 11 of Zhao, Fang and Li, *Recurrence along Depth*,
    NeurIPS 2021, https://arxiv.org/abs/2110.11852. It follows Chen et al., *Dual Path Networks*, NeurIPS
    2017, https://arxiv.org/abs/1707.01629. Where RLA keeps a state of k channels, each block appends k
    channels that all later blocks of the stage read. The RLA paper gives no more details. As in the original
    network, the first block of a stage projects its whole input to the residual path and 2 k channels of a
    new dense path. With k = 12 this gives 2,127,826 parameters, 2.13 M in the paper. Dense paths that start
    with k or no channels, or that continue through all stages, would give 2.09, 2.05 or 2.60 M.

    Args:
        depth (int): 9 n + 2. Defaults to 164.
        dense_channels (int): Channels k that a block appends. 0 gives the plain pre-activated ResNet.
            Defaults to 12.
        base_channels (int): Channels of the stem. The residual path of stage i has
            ``4 * base_channels * 2**i`` channels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, of strides 1, 2 and 4. An output holds the residual
            path, then the dense path. Norm and ReLU follow the last one, as classifiers need them.
            Stages after it are not built. Defaults to (0, 1, 2).
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and the first i stages. Defaults
            to -1.
        norm_cfg (dict): Norm config. Defaults to ``dict(type='BN', requires_grad=True)``.
        norm_eval (bool): Keep batch norms in evaluation mode while training. Defaults to False.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialisers, see :class:`Backbone`. Defaults to None.

    Raises:
        TypeError, ValueError: If an argument is wrong. The message names the argument, its value and the
            allowed values.

    Example:
        >>> import torch
        >>> from mmrecur.models.backbones import DualPathResNet
        >>> model = DualPathResNet(depth=164, dense_channels=12).eval()
        >>> for feature in model(torch.rand(1, 3, 32, 32)):
        ...     print(tuple(feature.shape))
        (1, 304, 32, 32)
        (1, 368, 16, 16)
        (1, 496, 8, 8)
    """

    expansion = 4

    def __init__(
        self,
        depth: int = 164,
        dense_channels: int = 12,
        base_channels: int = 16,
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
        check_int('depth', depth, 11)
        if (depth - 2) % 9:
            raise ValueError(f'depth={depth}, allowed: 9 n + 2, e.g. 29, 56, 164')
        check_int('dense_channels', dense_channels, 0)
        check_int('base_channels', base_channels, 1)
        self.depth = depth
        self.dense_channels = dense_channels
        norm_layer = make_norm_layer(self.norm_cfg)
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, padding=1, bias=False)
        self.bn1 = norm_layer(base_channels)
        self.relu = nn.ReLU(inplace=True)
        channels, widths = base_channels, []
        for i in range(self.num_stages):
            inner, blocks = base_channels * 2**i, []
            for j in range((depth - 2) // 9):
                block = DualPathBlock(
                    channels,
                    inner,
                    self.expansion * inner,
                    dense_channels,
                    stride=2 if i and not j else 1,
                    project=j == 0,
                    norm_layer=norm_layer,
                )
                channels = block.total_channels
                blocks.append(block)
            self.add_module(f'layer{i + 1}', Stage(blocks, with_cp))
            widths.append(channels)
        self.final_norm = norm_layer(channels)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(2**i for i in self.out_indices)
        self._freeze()

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1, self.bn1]
        modules = [getattr(self, f'layer{stage}')]
        return [*modules, self.final_norm] if stage == self.num_stages else modules

    def _run_stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _finish_outputs(self, outputs: list[Tensor], state: None) -> list[Tensor]:
        outputs[-1] = torch.relu(self.final_norm(outputs[-1]))
        return outputs

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        for i in range(self.num_stages):
            for block in getattr(self, f'layer{i + 1}'):
                block.switch_to_deploy()
