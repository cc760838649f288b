"""Statistics of the iterations that loops run for the images of a data set.

Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019, Section 4.2: the distribution of the loop times
(Figure 8), easy and hard images (Figure 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrecur.analysis.loop_complexity import LoopComplexity


@dataclass(frozen=True)
class LoopTimes:
    """Numbers of iterations that loops ran for some images.

    Attributes:
        limits (dict[str, int]): Maximum number of iterations of each loop, by the name of the loop.
        counts (dict[str, np.ndarray]): Number of iterations for each image, shape (N,), by the name of the
            loop.
    """

    limits: dict[str, int]
    counts: dict[str, np.ndarray]

    @property
    def limit(self) -> int:
        """int: Maximum number of iterations of all loops together."""
        return sum(self.limits.values())

    @property
    def totals(self) -> np.ndarray:
        """np.ndarray: Number of iterations of all loops together for each image, shape (N,)."""
        return np.sum([*self.counts.values()], axis=0)

    def rates(self) -> dict[str, list[float | None]]:
        """Return the rate of each gate: the share of the images reaching it that it lets pass.

        Returns:
            dict[str, list[float or None]]: A rate for each iteration of a loop, by the name of the loop: 1
            for iterations without a gate, None for those that no image reached.
        """
        result: dict[str, list[float | None]] = {}
        for name, counts in self.counts.items():
            reached = [(counts >= k).sum().item() for k in range(self.limits[name] + 1)]
            result[name] = [after / before if before else None for before, after in zip(reached, reached[1:])]
        return result

    def average_work(self, work: LoopComplexity) -> float:
        """Return the average number of multiply-adds for an image.

        Args:
            work (LoopComplexity): Multiply-adds of the parts of the network, with loops of the same names.

        Returns:
            float: Multiply-adds.
        """
        return work.average({name: [rate or 0.0 for rate in own] for name, own in self.rates().items()})

    def easiest_and_hardest(self, number: int) -> tuple[list[int], list[int]]:
        """Find the images with the fewest and with the most iterations.

        If more images tie for the last places than there are places, the chosen ones are spread evenly over
        the data set, because the data set may be sorted by class.

        Args:
            number (int): Number of images in each group; at most half of all images, rounded up, so that no
                image is in both groups.

        Returns:
            tuple[list[int], list[int]]: Indices of the images with the fewest iterations, in ascending order
            of iterations, and of those with the most, in descending order.
        """
        totals = self.totals
        number = min(number, -(-len(totals) // 2))
        easiest = _lowest(totals, np.arange(len(totals)), number)
        rest = np.setdiff1d(np.arange(len(totals)), easiest)
        return easiest, _lowest(-totals, rest, min(number, len(rest)))

    def easiest_and_hardest_of_classes(
        self, labels: Sequence[int], number: int
    ) -> tuple[list[int], list[int]]:
        """Find, for several classes, the image with the fewest and the image with the most iterations.

        Args:
            labels (Sequence[int]): Class of each image.
            number (int): Maximum number of classes. Classes whose two images differ most come first; ties
                keep the order of the classes.

        Returns:
            tuple[list[int], list[int]]: Indices of the easiest and of the hardest image of each chosen class.
            Classes with a single image are left out.
        """
        totals, labels = self.totals, np.asarray(labels)
        pairs = []
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if len(own) > 1:
                order = own[np.argsort(totals[own], kind='stable')]
                pairs.append((int(order[0]), int(order[-1])))
        pairs.sort(key=lambda pair: totals[pair[0]] - totals[pair[1]])
        easiest, hardest = zip(*pairs[:number]) if pairs else ((), ())
        return [*easiest], [*hardest]


def _lowest(values: np.ndarray, candidates: np.ndarray, number: int) -> list[int]:
    """Return the candidates with the lowest values in ascending order; spread ties for the last places."""
    order = candidates[np.argsort(values[candidates], kind='stable')]
    if not number:
        return []
    last = values[order[number - 1]]
    below, equal = order[values[order] < last], order[values[order] == last]
    missing = number - len(below)
    return [*below.tolist(), *equal[np.arange(missing) * len(equal) // missing].tolist()]
