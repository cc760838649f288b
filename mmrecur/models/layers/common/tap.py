"""What else is read from a block beside its output."""

from __future__ import annotations

from torch import Tensor, nn


class Tap:
    """Reads one of the maps that a block computes on the way.

    A block returns its output alone, so that forward hooks, those of Grad-CAM among them, see one map. What
    else is wanted of it comes through a tap that the caller passes along.

    Args:
        source (str): Which map, see the block. Defaults to 'residual'.
        readout (nn.Module, optional): Applied to the map. Defaults to None, the map as it is.

    Attributes:
        value (Tensor, optional): What was read, once the block has run.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import Bottleneck
        >>> tap = Tap('residual', torch.nn.Conv2d(64, 8, 1))
        >>> Bottleneck(64, 16, 64)(torch.rand(1, 64, 7, 7), tap=tap).shape, tap.value.shape
        (torch.Size([1, 64, 7, 7]), torch.Size([1, 8, 7, 7]))
    """

    def __init__(self, source: str = 'residual', readout: nn.Module | None = None) -> None:
        self.source = source
        self.readout = readout
        self.value: Tensor | None = None

    def read(self, x: Tensor) -> None:
        """Read a map."""
        self.value = x if self.readout is None else self.readout(x)
