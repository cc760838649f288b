"""The pre-activated bottleneck block of a dual path network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.fuse_preact import fuse_preactivation

NormLayer = Callable[[int], nn.Module]


class DualPathBlock(nn.Module):
    """Bottleneck block with a residual and a densely connected path.

    Chen et al., *Dual Path Networks*, NeurIPS 2017, https://arxiv.org/abs/1707.01629, Section 4. Each
    convolution follows a norm and a ReLU. The first ``out_channels`` channels of the result are added to the
    residual path, the other ``dense_channels`` are appended to the dense path. The first block of a stage
    projects its whole input to a new residual path and ``2 * dense_channels`` channels of a new dense path.

    Args:
        in_channels (int): Channels of both input paths together.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the residual path.
        dense_channels (int): Channels appended to the dense path. 0 gives a plain pre-activated bottleneck
            block. Defaults to 0.
        stride (int): Stride of the 3x3 convolution. Defaults to 1.
        project (bool): Whether the block starts a stage. Defaults to False.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Attributes:
        total_channels (int): Channels of both output paths together.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        dense_channels: int = 0,
        stride: int = 1,
        project: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.bn1 = norm_layer(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn2 = norm_layer(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride, padding=1, bias=False)
        self.bn3 = norm_layer(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels + dense_channels, 1, bias=False)
        kept = out_channels + 2 * dense_channels if project else in_channels
        self.downsample = nn.Conv2d(in_channels, kept, 1, stride, bias=False) if project else None
        self.total_channels = kept + dense_channels
        self.relu1 = nn.ReLU(inplace=True)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Residual path and dense path, shape (N, in_channels, H, W).

        Returns:
            Tensor: Both paths after the block, shape (N, total_channels, H / stride, W / stride).
        """
        active = self.relu1(self.bn1(x))
        if self.downsample is not None:
            x = self.downsample(active)
        y = self.conv1(active)
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        if self.total_channels == self.out_channels:
            return x + y
        main = self.out_channels
        return torch.cat([x[:, :main] + y[:, :main], x[:, main:], y[:, main:]], dim=1)

    def switch_to_deploy(self) -> None:
        """Fuse the norms into the convolutions."""
        readers = [self.conv1] if self.downsample is None else [self.conv1, self.downsample]
        fused = fuse_preactivation(self.bn1, readers)
        if fused is not None:
            self.bn1, readers = fused
            self.relu1 = nn.Identity()
            self.conv1, self.downsample = readers if len(readers) == 2 else (readers[0], None)
        self.conv1, self.bn2 = fuse_norm(self.conv1, self.bn2)
        self.conv2, self.bn3 = fuse_norm(self.conv2, self.bn3)
