"""Xception with recurrent layer aggregation: separable convolutions, blocks and stages.

Chollet, *Xception*, CVPR 2017, https://arxiv.org/abs/1610.02357; Zhao, Fang and Li, *Recurrence along Depth*,
NeurIPS 2021, https://arxiv.org/abs/2110.11852, Table 9 and Appendix B.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.activation_checkpoint import run_step
from mmrecur.models.layers.common.fuse import fuse_norm, fuse_norm_of_sum
from mmrecur.models.layers.common.residual import NormLayer, shortcut_projection
from mmrecur.models.layers.common.stage import BlockSequence
from mmrecur.models.layers.rla.block import Tap, with_zero_gradients
from mmrecur.models.layers.rla.cell import downsample_hidden
from mmrecur.models.layers.rla.multi_width_cell import MultiWidthRLACell


class SeparableConv(nn.Module):
    """3x3 depthwise convolution, 1x1 convolution and norm, applied to ``cat(x, h)``.

    Both convolutions are stored in two parts, one for x and one for h. This avoids the concatenation, and the
    parts for x keep the shapes of the plain network.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        hidden_channels (int): Channels of the state, 0 for none. Defaults to 0.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.depthwise, self.pointwise = self._convs(in_channels, out_channels)
        self.depthwise_hidden, self.pointwise_hidden = (
            self._convs(hidden_channels, out_channels) if hidden_channels else (None, None)
        )
        self.bn = norm_layer(out_channels)

    @staticmethod
    def _convs(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
        depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        return depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Run the layer.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            h (Tensor, optional): State, shape (N, hidden_channels, H, W). None stands for zeros.

        Returns:
            Tensor: Shape (N, out_channels, H, W).
        """
        y = self.pointwise(self.depthwise(x))
        if self.depthwise_hidden is not None:
            if h is not None:
                y = y + self.pointwise_hidden(self.depthwise_hidden(h))
            elif self.training:
                y = with_zero_gradients(y, self.depthwise_hidden, self.pointwise_hidden)
        return self.bn(y)

    def switch_to_deploy(self) -> None:
        """Fuse the norm into the 1x1 convolutions."""
        self.pointwise, self.pointwise_hidden, self.bn = fuse_norm_of_sum(
            self.pointwise, self.pointwise_hidden, self.bn
        )


class XceptionBlock(nn.Module):
    """Separable convolutions with ReLUs between them and an optional shortcut.

    Table 9 of the RLA paper. A block with a shortcut may start with a ReLU and may end with an average
    pooling, where Xception has a max pooling. A block without a shortcut ends with a ReLU.

    Args:
        channels (Sequence[int]): Channels of the input and of the output of each convolution.
        hidden_channels (int): Channels of the state that the first convolution reads, 0 for none. Defaults
            to 0.
        stride (int): Stride of the pooling and of the shortcut. Defaults to 1.
        relu_first (bool): Whether the block starts with a ReLU. Defaults to True.
        shortcut (bool): Whether there is a shortcut. Defaults to True.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        hidden_channels: int = 0,
        stride: int = 1,
        relu_first: bool = True,
        shortcut: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.out_channels = channels[-1]
        self.stride = stride
        self.shortcut = shortcut
        # not in place: the shortcut reads the same map
        self.relu_first = nn.ReLU() if relu_first else None
        self.convs = nn.ModuleList(
            SeparableConv(cin, cout, 0 if i else hidden_channels, norm_layer)
            for i, (cin, cout) in enumerate(zip(channels, channels[1:]))
        )
        self.relu = nn.ReLU(inplace=True)
        # the windows are centred on the pixels that the strided shortcut keeps
        self.pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False) if stride > 1 else None
        self.downsample = (
            shortcut_projection(channels[0], channels[-1], stride, False, norm_layer)
            if shortcut and (stride > 1 or channels[0] != channels[-1])
            else None
        )

    def forward(self, x: Tensor, h: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            h (Tensor, optional): State, shape (N, hidden_channels, H, W). None stands for zeros.
            tap (Tap, optional): Reads the ``'residual'``, which is the output of the convolutions before the
                pooling, shape (N, C_out, H, W). Defaults to None.

        Returns:
            Tensor: Shape (N, C_out, H / stride, W / stride), sizes rounded up.
        """
        y, state = x, h
        if self.relu_first is not None:
            y, state = self.relu_first(y), None if h is None else self.relu_first(h)
        y = self.convs[0](y, state)
        for conv in self.convs[1:]:
            y = conv(self.relu(y))
        if not self.shortcut:
            y = self.relu(y)
        if tap is not None:
            tap.read(residual=y)
        if not self.shortcut:
            return y
        output = y if self.pool is None else self.pool(y)
        return output + (x if self.downsample is None else self.downsample(x))

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        for conv in self.convs:
            conv.switch_to_deploy()
        if self.downsample is not None:
            self.downsample[0], self.downsample[1] = fuse_norm(self.downsample[0], self.downsample[1])

    def assume_zero_state(self) -> None:
        """Drop the convolutions of the state, which is always zero in the first block of a network."""
        self.convs[0].depthwise_hidden = self.convs[0].pointwise_hidden = None


class RLAXceptionStage(BlockSequence):
    """Blocks of the same input resolution and the recurrent cell ``rla`` that they share.

    Unlike in :class:`RLAStage`, a strided block updates the state at the resolution of its input, and the
    state is pooled afterwards.

    Args:
        blocks (Sequence[XceptionBlock]): The blocks.
        cell (MultiWidthRLACell, optional): The cell, with one update for each block. If nothing reads the
            state after the stage, the last block has none. None for a plain stage.
        with_cp (bool): Recompute each block and its update in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        blocks: Sequence[XceptionBlock],
        cell: MultiWidthRLACell | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.rla = cell
        self.num_updates = 0 if cell is None else cell.num_steps
        self.with_cp = with_cp

    def block_parts(self) -> list[list[nn.Module]]:
        """See :meth:`BlockSequence.block_parts`. The cell's parts of one update belong to that block."""
        parts = super().block_parts()
        for index in range(self.num_updates):
            parts[index] += self.rla.step_parts(index)
        return parts

    def step(self, x: Tensor, h: Tensor | None, index: int) -> tuple[Tensor, Tensor | None]:
        """Run block ``index`` and, if there is one, the update after it."""
        block = self.blocks[index]
        if index >= self.num_updates:
            return block(x, h), h
        tap = Tap(readout=self.rla.readout(index))
        x = block(x, h, tap)
        return x, downsample_hidden(self.rla.update(h, tap.value, index), block.stride)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the stage.

        Args:
            x (Tensor): Shape (N, C_in, H, W).
            h (Tensor, optional): State, shape (N, k, H, W). None stands for zeros.

        Returns:
            tuple[Tensor, Tensor]: The output and the state after the last update.
        """
        for index in range(len(self.blocks)):
            x, h = run_step(self, self.with_cp, self.step, x, h, index)
        return x, h

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        for block in self.blocks:
            block.switch_to_deploy()
        if self.rla is not None:
            self.rla.switch_to_deploy()
