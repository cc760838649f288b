"""The recurrent cell of a stage whose blocks differ in width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from mmrecur.models.layers.rla.cell import RLACell


class MultiWidthRLACell(nn.Module):
    """An :class:`RLACell` for blocks that differ in width.

    All steps share the 3x3 convolution W_r (``recurrent_conv``). Consecutive steps that read the same number
    of channels share a 1x1 convolution W_o; they form an :class:`RLACell` without W_r.

    Args:
        in_channels (Sequence[int]): Channels of the map that each step aggregates.
        hidden_channels (int): Channels k of the state. Defaults to 32.
        norm_layer (Callable): Builds a norm from a number of channels. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If a number is not a positive integer.

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
        #: For each step, the index of its cell and the step in this cell.
        self.places: list[tuple[int, int]] = []
        self.recurrent_conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False)
        for index, (width, run) in enumerate(groupby(in_channels)):
            steps = len(list(run))
            # registered once here; in every cell W_r would be one tensor under several names
            cell = RLACell(width, hidden_channels, steps, norm_layer=norm_layer, recurrent_conv=nn.Identity())
            self.cells.append(cell)
            self.places += [(index, step) for step in range(steps)]
        self.num_steps = len(self.places)

    def readout(self, step: int) -> nn.Module:
        """See :meth:`RLACell.readout`."""
        index, place = self.places[step]
        return self.cells[index].readout(place)

    def step_parts(self, step: int) -> list[nn.Module]:
        """See :meth:`RLACell.step_parts`. The first step of a cell includes its W_o."""
        index, place = self.places[step]
        parts = self.cells[index].step_parts(place)
        return parts if place else [*parts, self.readout(step)]

    def update(self, h: Tensor | None, new: Tensor, step: int) -> Tensor:
        """See :meth:`RLACell.update`."""
        index, place = self.places[step]
        return self.recurrent_conv(self.cells[index].update(h, new, place))

    def switch_to_deploy(self) -> None:
        """Replace the cells by their inference form, unless a norm cannot be fused."""
        fused = [cell.fused() for cell in self.cells]
        if None not in fused:
            self.cells = nn.ModuleList(fused)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept older checkpoints, in which every cell has a copy of W_r."""
        old = [f'{prefix}cells.{index}.recurrent_conv.weight' for index in range(len(self.cells))]
        found = [state_dict.pop(name) for name in old if name in state_dict]
        if found:
            state_dict.setdefault(f'{prefix}recurrent_conv.weight', found[0])
        super()._load_from_state_dict(state_dict, prefix, *args)
