"""Residual blocks of wide networks whose convolutions can take their weights from template banks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.template_bank.conv import convolve, materialised


class WideBasicBlock(nn.Module):
    """Pre-activated basic block: norm, ReLU and 3x3 convolution, twice.

    `Zagoruyko and Komodakis 2016 <https://arxiv.org/abs/1605.07146>`_. Where stride or width change, a 1x1
    convolution of the normalised and activated input replaces the identity shortcut.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        stride (int): Stride of the first convolution. Defaults to 1.
        dropout (float): Dropout probability between the convolutions. Defaults to 0.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.
    """

    #: Layers that can share a bank, in the order in which ``forward`` takes their weights.
    SHAREABLE = ('conv1', 'conv2')

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dropout: float = 0.0,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        options = dict(padding=1, bias=False)
        self.bn1 = norm_layer(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, **options)
        self.bn2 = norm_layer(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, **options)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor, weights: Sequence[Tensor | None] = (None, None)) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            weights (Sequence[Tensor or None]): Generated weights of ``conv1`` and ``conv2``. None for a
                plain convolution, or for one that asks its bank itself. Defaults to (None, None).

        Returns:
            Tensor: Sum of shortcut and residual without a ReLU, shape
            (N, out_channels, H / stride, W / stride).
        """
        inner = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(inner)
        inner = convolve(self.conv1, inner, weights[0])
        inner = self.dropout(self.relu(self.bn2(inner)))
        residual = convolve(self.conv2, inner, weights[1])
        residual += shortcut
        return residual

    def switch_to_deploy(self) -> None:
        """Replace shared convolutions by plain ones and fuse ``bn2`` into ``conv1``, in place.

        ``bn1`` stays: it follows a sum, not a convolution.
        """
        self.conv1, self.bn2 = fuse_norm(materialised(self.conv1), self.bn2)
        self.conv2 = materialised(self.conv2)
        self.dropout = nn.Identity()


class WideBottleneck(Bottleneck):
    """Bottleneck whose three convolutions can take their weights from template banks.

    See :class:`Bottleneck` for the arguments.
    """

    SHAREABLE = ('conv1', 'conv2', 'conv3')

    def forward(self, x: Tensor, weights: Sequence[Tensor | None] = (None, None, None)) -> Tensor:
        """Run the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            weights (Sequence[Tensor or None]): Generated weights of the three convolutions, see
                :meth:`WideBasicBlock.forward`. Defaults to three times None.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        inner = self.relu(self.bn1(convolve(self.conv1, x, weights[0])))
        inner = self.relu(self.bn2(convolve(self.conv2, inner, weights[1])))
        residual = self.bn3(convolve(self.conv3, inner, weights[2]))
        residual += x if self.downsample is None else self.downsample(x)
        return self.relu(residual)

    def switch_to_deploy(self) -> None:
        """Replace shared convolutions by plain ones and fuse the norms, in place."""
        for name in self.SHAREABLE:
            setattr(self, name, materialised(getattr(self, name)))
        super().switch_to_deploy()
