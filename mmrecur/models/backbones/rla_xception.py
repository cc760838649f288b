"""RLA-Xception: the thin Xception for CIFAR with recurrent layer aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mmrecur.checks import check_flag, check_int
from mmrecur.models.backbones.base import Backbone, make_norm_layer
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.rla.multi_width_cell import MultiWidthRLACell
from mmrecur.models.layers.rla.stage import append_hidden
from mmrecur.models.layers.rla.xception import RLAXceptionStage, XceptionBlock
from mmrecur.registry import MODELS


@MODELS.register_module()
class RLAXception(Backbone):
    """Thin Xception for small images with recurrent layer aggregation (RLA).

    Table 9 and Appendix B.1 of Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021,
    https://arxiv.org/abs/2110.11852; Xception by Chollet, CVPR 2017, https://arxiv.org/abs/1610.02357. The
    network has the 36 convolutions of Xception with fewer channels, average instead of max pooling and three
    strides fewer. Table 9 omits the third block of the entry flow, but "depth unchanged" and 2.70 M
    parameters imply it.

    The stages are the parts of one resolution, as the rows of Table 9: the three blocks of the entry flow,
    the middle flow with the block that widens, and the last two convolutions. The blocks of a stage share
    the recurrent 3x3 convolution. Those of the same width share the 1x1 convolution that reads them. The
    output of a block's convolutions updates the state before both are pooled. Only these stages give the
    parameters in Table 2, 2.77 M for 10 and 2.81 M for 100 classes.

    Args:
        rla_channels (int): Channels k of the state. 0 gives the plain thin Xception. Defaults to 12.
        base_channels (int): Channels of the first convolution. The others have 2 to 32 times as many.
            Defaults to 16.
        with_hidden (bool): Append the state to the last output, for classifiers: ``cat(x, relu(BN(h)))``.
            Defaults to False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, of strides 2, 4 and 4. Stages after the last one
            are not built. Defaults to (0, 1, 2).
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
        >>> from mmrecur.models.backbones import RLAXception
        >>> model = RLAXception(with_hidden=True).eval()
        >>> for feature in model(torch.rand(1, 3, 32, 32)):
        ...     print(tuple(feature.shape))
        (1, 256, 16, 16)
        (1, 512, 8, 8)
        (1, 524, 8, 8)
    """

    #: Blocks of each stage: channels of the input and of each convolution, relative to ``base_channels``, and
    #: options of :class:`XceptionBlock`.
    stages_settings = (
        (
            ((2, 4, 4), dict(relu_first=False)),
            ((4, 8, 8), dict()),
            ((8, 16, 16), dict(stride=2)),
        ),
        (((16, 16, 16, 16), dict()),) * 8 + (((16, 16, 32), dict(stride=2)),),
        (((32, 32, 32), dict(relu_first=False, shortcut=False)),),
    )
    strides = (2, 4, 4)

    def __init__(
        self,
        rla_channels: int = 12,
        base_channels: int = 16,
        with_hidden: bool = False,
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
        check_int('rla_channels', rla_channels, 0)
        check_int('base_channels', base_channels, 1)
        check_flag(with_hidden=with_hidden)
        if with_hidden and not rla_channels:
            raise ValueError('with_hidden=True with rla_channels=0, allowed: False, or a state to append')
        self.rla_channels = rla_channels
        self.base_channels = base_channels
        self.with_hidden = with_hidden
        norm_layer = make_norm_layer(self.norm_cfg)
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, padding=1, bias=False)
        self.bn1 = norm_layer(base_channels)
        self.conv2 = nn.Conv2d(base_channels, 2 * base_channels, 3, padding=1, bias=False)
        self.bn2 = norm_layer(2 * base_channels)
        self.relu = nn.ReLU(inplace=True)
        for i in range(self.num_stages):
            self.add_module(f'layer{i + 1}', self._make_stage(i, norm_layer))
        self.hidden_norm = norm_layer(rla_channels) if with_hidden else None
        widths = [self.stages_settings[i][-1][0][-1] * base_channels for i in self.out_indices]
        widths[-1] += rla_channels if with_hidden else 0
        self.out_channels = tuple(widths)
        self.out_strides = tuple(self.strides[i] for i in self.out_indices)
        self._freeze()

    def _make_stage(self, index: int, norm_layer: nn.Module) -> RLAXceptionStage:
        blocks = [
            XceptionBlock(
                [self.base_channels * width for width in widths],
                self.rla_channels,
                norm_layer=norm_layer,
                **options,
            )
            for widths, options in self.stages_settings[index]
        ]
        read = [block.out_channels for block in blocks]
        if not self.with_hidden and index == self.num_stages - 1:
            # an update that nothing reads is omitted: its parameters would never get a gradient
            read.pop()
        cell = MultiWidthRLACell(read, self.rla_channels, norm_layer) if self.rla_channels and read else None
        return RLAXceptionStage(blocks, cell, self.with_cp)

    def stage_modules(self, stage: int) -> Iterable[nn.Module]:
        """See :meth:`Backbone.stage_modules`."""
        if stage == 0:
            return [self.conv1, self.bn1, self.conv2, self.bn2]
        modules = [getattr(self, f'layer{stage}')]
        if stage == self.num_stages and self.hidden_norm is not None:
            modules.append(self.hidden_norm)
        return modules

    def _run_stem(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))

    def _run_stage(self, index: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f'layer{index + 1}')(x, state)

    def _finish_outputs(self, outputs: list[Tensor], state: Tensor | None) -> list[Tensor]:
        if self.hidden_norm is not None:
            outputs[-1] = append_hidden(outputs[-1], state, self.hidden_norm)
        return outputs

    def _switch_to_deploy(self) -> None:
        self.conv1, self.bn1 = fuse_norm(self.conv1, self.bn1)
        self.conv2, self.bn2 = fuse_norm(self.conv2, self.bn2)
        for i in range(self.num_stages):
            getattr(self, f'layer{i + 1}').switch_to_deploy()
        self.layer1[0].assume_zero_state()
