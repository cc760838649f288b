"""Statistics of the feature maps that gates let pass and of those that they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class MapStatistics:
    """Accumulate the mean and variance of each channel over the images and pixels of feature maps.

    Attributes:
        images (int): Number of images added.
    """

    def __init__(self) -> None:
        self.images = 0
        self._pixels = 0
        self._sums: Tensor | None = None  # of values and squares, shape (2, C)

    def add(self, x: Tensor) -> None:
        """Add maps.

        Args:
            x (Tensor): Shape (N, C, H, W); N may be 0.
        """
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
        """np.ndarray: Mean of each channel, shape (C,); empty if no image was added."""
        return np.empty(0) if self._sums is None else (self._sums[0] / self._pixels).cpu().numpy()

    @property
    def variance(self) -> np.ndarray:
        """np.ndarray: Biased variance of each channel, shape (C,); empty if no image was added."""
        if self._sums is None:
            return np.empty(0)
        return np.maximum((self._sums[1] / self._pixels).cpu().numpy() - self.mean**2, 0)


@dataclass(frozen=True)
class GateMaps:
    """Statistics of the maps that reached a gate in one iteration.

    Attributes:
        block (str): Name of the loop.
        iteration (int): Index of the iteration.
        passed (MapStatistics): Statistics of the maps that the gate let pass.
        skipped (MapStatistics): Statistics of the maps for which the iteration was skipped.
    """

    block: str
    iteration: int
    passed: MapStatistics
    skipped: MapStatistics

    def discrepancy(self) -> float | None:
        """Compute how far passed and skipped maps are apart.

        Returns:
            float or None: Absolute difference of the two means of a channel, divided by its pooled standard
            deviation and averaged over the channels that are not constant. None unless there are passed and
            skipped maps.
        """
        if not (self.passed.images and self.skipped.images):
            return None
        deviation = np.sqrt((self.passed.variance + self.skipped.variance) / 2)
        varies = deviation > 0
        difference = np.abs(self.passed.mean - self.skipped.mean)
        return float(np.mean(difference[varies] / deviation[varies])) if varies.any() else 0.0


def shallow_and_deep(maps: Sequence[GateMaps]) -> list[GateMaps]:
    """Choose one iteration of a shallow and one of a deep loop to compare passed and skipped maps.

    Only loops whose gate let some maps pass and skipped others are considered. The first and the last
    such loop are chosen, each with the iteration in which the rarer of the two kinds has the most maps.

    Args:
        maps (Sequence[GateMaps]): Statistics of all iterations of all loops, in order.

    Returns:
        list[GateMaps]: Two iterations; one if there is a single such loop, none if there is no such loop.
    """
    chosen: dict[str, GateMaps] = {}
    for gate in maps:
        if _rarer(gate) > (_rarer(chosen[gate.block]) if gate.block in chosen else 0):
            chosen[gate.block] = gate
    found = [*chosen.values()]
    return found if len(found) < 2 else [found[0], found[-1]]


def _rarer(gate: GateMaps) -> int:
    """Return the number of maps of the rarer kind."""
    return min(gate.passed.images, gate.skipped.images)
