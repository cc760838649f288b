"""Residual blocks whose convolutions may draw from template banks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.common.residual import Bottleneck, NormLayer
from mmrecur.models.layers.template_bank.bank import TemplateConv2d

#: A layer's weight from its bank; None where the layer has its own.
Weight = Tensor | None


def convolve(conv: nn.Module, x: Tensor, weight: Weight) -> Tensor:
    """Run a layer with its own weight, or with the one that its bank gave."""
    # a layer that was made a plain one needs none
    return conv(x, weight) if isinstance(conv, TemplateConv2d) else conv(x)


def materialised(conv: nn.Module) -> nn.Module:
    """The layer as a plain convolution."""
    return conv.materialise() if isinstance(conv, TemplateConv2d) else conv


class WideBasicBlock(nn.Module):
    """Pre-activated basic block of wide residual networks, norm - ReLU - 3x3, twice.

    `Zagoruyko and Komodakis 2016 <https://arxiv.org/abs/1605.07146>`_. Where the width changes, the
    1x1 convolution of the shortcut reads the activated input too.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        dropout (float): Probability of dropout before the second convolution. Defaults to 0.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.
    """

    #: Layers that may draw from a bank, in the order of their weights.
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

    def forward(self, x: Tensor, weights: Sequence[Weight] = (None, None)) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            weights (Sequence[Tensor or None]): Weights of the two convolutions where they come from a
                bank. Defaults to none.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride), not activated.
        """
        inner = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(inner)
        inner = convolve(self.conv1, inner, weights[0])
        inner = self.dropout(self.relu(self.bn2(inner)))
        residual = convolve(self.conv2, inner, weights[1])
        residual += shortcut
        return residual

    def switch_to_deploy(self) -> None:
        """Give the layers their weights, fold the norm between them; the first one follows a sum."""
        self.conv1, self.bn2 = fuse_norm(materialised(self.conv1), self.bn2)
        self.conv2 = materialised(self.conv2)
        self.dropout = nn.Identity()


class WideBottleneck(Bottleneck):
    """Bottleneck block whose three convolutions may draw from banks.

    Args:
        in_channels (int): Channels of the input.
        inner_channels (int): Channels between the 1x1 convolutions.
        out_channels (int): Channels of the output.
        **kwargs: See :class:`Bottleneck`.
    """

    SHAREABLE = ('conv1', 'conv2', 'conv3')

    def forward(self, x: Tensor, weights: Sequence[Weight] = (None, None, None)) -> Tensor:
        """Compute the block.

        Args:
            x (Tensor): Shape (N, in_channels, H, W).
            weights (Sequence[Tensor or None]): Weights of the three convolutions where they come from a
                bank. Defaults to none.

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        inner = self.relu(self.bn1(convolve(self.conv1, x, weights[0])))
        inner = self.relu(self.bn2(convolve(self.conv2, inner, weights[1])))
        residual = self.bn3(convolve(self.conv3, inner, weights[2]))
        residual += x if self.downsample is None else self.downsample(x)
        return self.relu(residual)

    def switch_to_deploy(self) -> None:
        """Give the layers their weights and fold the norms."""
        for name in self.SHAREABLE:
            setattr(self, name, materialised(getattr(self, name)))
        super().switch_to_deploy()
