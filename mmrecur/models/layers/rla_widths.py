"""Recurrent layer aggregation over blocks of several widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from torch import Tensor, nn

from .rla import RLACell


class MultiWidthRLACell(nn.Module):
    """The recurrent path of a stage whose blocks differ in width.

    All steps share the 3x3 convolution W_r; a 1x1 convolution W_o is shared by the steps in a row that read
    the same number of channels. Otherwise as :class:`RLACell`, of which there is one for each width.

    Args:
        in_channels (Sequence[int]): Channels of what each step aggregates.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        norm_layer (Callable): Builds a norm from a channel count. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If a count is not a positive integer.

    Example:
        >>> import torch
        >>> cell = MultiWidthRLACell(in_channels=(64, 128, 128), hidden_channels=12)
        >>> h = None
        >>> for step, channels in enumerate((64, 128, 128)):
        ...     h = cell.update(h, cell.readout(step)(torch.rand(2, channels, 8, 8)), step)
        >>> h.shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_channels: int = 32,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList()
        #: Which cell a step belongs to, and its step there.
        self.places: list[tuple[int, int]] = []
        for index, (width, run) in enumerate(groupby(in_channels)):
            steps = len(list(run))
            cell = RLACell(width, hidden_channels, steps, norm_layer=norm_layer)
            if index:
                cell.recurrent_conv = self.cells[0].recurrent_conv
            self.cells.append(cell)
            self.places += [(index, step) for step in range(steps)]
        self.num_steps = len(self.places)

    def readout(self, step: int) -> nn.Module:
        """See :meth:`RLACell.readout`."""
        index, place = self.places[step]
        return self.cells[index].readout(place)

    def step_parts(self, step: int) -> list[nn.Module]:
        """See :meth:`RLACell.step_parts`; the first step of a width brings the convolution that reads it."""
        index, place = self.places[step]
        parts = self.cells[index].step_parts(place)
        return parts if place else [*parts, self.readout(step)]

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`RLACell.update`."""
        index, place = self.places[step]
        return self.cells[index].update(h, new, place)

    def switch_to_deploy(self) -> None:
        """Bring the cells into their inference form, unless a norm cannot be folded."""
        fused = [cell.fused() for cell in self.cells]
        if None not in fused:
            self.cells = nn.ModuleList(fused)
