"""Statistics of the maps that gates let pass and of those that they did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class MapStatistics:
    """Mean and variance of each channel over the images and pixels of the maps that are added.

    Attributes:
        images (int): Maps added.
    """

    def __init__(self) -> None:
        self.images = 0
        self._pixels = 0
        self._sums: Tensor | None = None  # of values and of squares, shape (2, C)

    def add(self, x: Tensor) -> None:
        """Count maps of shape (N, C, H, W)."""
        if not len(x):
            return
        var, mean = torch.var_mean(x.detach().float(), (2, 3), correction=0)
        mean, var = mean.double(), var.double()
        pixels = x.size(2) * x.size(3)
        sums = pixels * torch.stack((mean, var + mean.square())).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums
        self.images += len(x)
        self._pixels += pixels * len(x)

    @property
    def mean(self) -> np.ndarray:
        """np.ndarray: Shape (C,); empty if nothing was added."""
        return np.empty(0) if self._sums is None else (self._sums[0] / self._pixels).cpu().numpy()

    @property
    def variance(self) -> np.ndarray:
        """np.ndarray: Biased, shape (C,); empty if nothing was added."""
        if self._sums is None:
            return np.empty(0)
        return np.maximum((self._sums[1] / self._pixels).cpu().numpy() - self.mean**2, 0)


@dataclass(frozen=True)
class GateMaps:
    """Statistics of the maps that came to a gate in one iteration.

    Attributes:
        block (str): Name of the loop.
        iteration (int): Index of the iteration.
        passed (MapStatistics): Of the maps that it let pass, on which the block was executed.
        skipped (MapStatistics): Of the others.
    """

    block: str
    iteration: int
    passed: MapStatistics
    skipped: MapStatistics

    def discrepancy(self) -> float | None:
        """How far the two kinds of maps are apart.

        Returns:
            float: The difference of a channel's means relative to the root of the mean of its variances,
            averaged over the channels that are not constant; None unless there are maps of both kinds.
        """
        if not (self.passed.images and self.skipped.images):
            return None
        deviation = np.sqrt((self.passed.variance + self.skipped.variance) / 2)
        varies = deviation > 0
        difference = np.abs(self.passed.mean - self.skipped.mean)
        return float(np.mean(difference[varies] / deviation[varies])) if varies.any() else 0.0


def shallow_and_deep(maps: Sequence[GateMaps]) -> list[GateMaps]:
    """Of the first and of the last loop that has maps of both kinds the iteration with the most of the rarer.

    Args:
        maps (Sequence[GateMaps]): Those of all loops, in order.

    Returns:
        list[GateMaps]: Two, one if a single loop has maps of both kinds, none if none has.
    """
    chosen: dict[str, GateMaps] = {}
    for gate in maps:
        if _rarer(gate) > (_rarer(chosen[gate.block]) if gate.block in chosen else 0):
            chosen[gate.block] = gate
    found = [*chosen.values()]
    return found if len(found) < 2 else [found[0], found[-1]]


def _rarer(gate: GateMaps) -> int:
    return min(gate.passed.images, gate.skipped.images)
