"""Shortest paths between two points of a grid with obstacles, with a curriculum.

Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019, Section 4.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmrecur.checks import check_choice, check_int
from mmrecur.registry import DATASETS

#: How far the second point may be from the first along each axis, by phase: 5x5, 9x9, ... 21x21 points.
CURRICULUM = (2, 4, 6, 8, 10)
_SPLITS = ('train', 'val', 'test')


def grid_distances(blocked: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Lengths of shortest paths on grids, all examples at once.

    A path goes up, down, left or right, one point at a time, and around obstacles.

    Args:
        blocked (np.ndarray): Obstacles, bool, shape (N, H, W). A start may not be one.
        starts (np.ndarray): Row and column of each start, shape (N, 2).

    Returns:
        np.ndarray: Distance of every point from the start, int16, shape (N, H, W); -1 where no path leads.
    """
    distances = np.full(blocked.shape, -1, np.int16)
    front = np.zeros(blocked.shape, bool)
    front[np.arange(len(starts)), starts[:, 0], starts[:, 1]] = True
    steps = 0
    while front.any():
        distances[front] = steps
        reached = np.zeros_like(front)
        reached[:, 1:] |= front[:, :-1]
        reached[:, :-1] |= front[:, 1:]
        reached[:, :, 1:] |= front[:, :, :-1]
        reached[:, :, :-1] |= front[:, :, 1:]
        front = reached & ~blocked & (distances < 0)
        steps += 1
    return distances


def _check_grid(size: int, obstacle_probability: float, unreachable: str) -> None:
    check_int('size', size, 2)  # else there is no place for a second point
    is_number = isinstance(obstacle_probability, (int, float)) and not isinstance(obstacle_probability, bool)
    if not is_number or not 0 <= obstacle_probability < 1:
        raise ValueError(
            f'obstacle_probability={obstacle_probability!r}, allowed: a number from 0 to below 1'
        )
    check_choice('unreachable', unreachable, ('redraw', 'empty'))


def _draw(
    rng: np.random.Generator, count: int, radius: int, size: int, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Query points, shape (count, 2, 2), and obstacles, shape (count, size, size)."""
    first = rng.integers(0, size, (count, 2))
    low, high = np.maximum(first - radius, 0), np.minimum(first + radius, size - 1)
    second = rng.integers(low, high + 1)
    while (same := (first == second).all(1)).any():
        second[same] = rng.integers(low[same], high[same] + 1)
    points = np.stack([first, second], axis=1)
    blocked = rng.random((count, size, size)) < probability
    for k in range(2):
        blocked[np.arange(count), points[:, k, 0], points[:, k, 1]] = False
    return points, blocked


def generate_shortest_paths(
    count: int,
    radius: int,
    rng: np.random.Generator,
    size: int = 32,
    obstacle_probability: float = 0.1,
    unreachable: str = 'redraw',
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples of the task.

    The first query point is uniform on the grid, the second uniform within ``radius`` of it along each axis
    (cut off at the border), and every other point is an obstacle with the given probability. Labelled are
    all points that lie on any shortest path, the query points included.

    Args:
        count (int): Examples.
        radius (int): Largest distance of the query points along an axis.
        rng (np.random.Generator): Where the randomness comes from.
        size (int): Side of the grid. Defaults to 32.
        obstacle_probability (float): Defaults to 0.1.
        unreachable (str): What becomes of query points that no path joins: ``'redraw'``, another example is
            drawn in its place; ``'empty'``, no point is labelled. Defaults to 'redraw'.

    Returns:
        tuple[np.ndarray, np.ndarray]: Inputs, uint8, shape (count, 2, size, size), of which the first
        channel marks the query points and the second the obstacles; labels, uint8, shape (count, size, size).

    Raises:
        ValueError: If an argument is wrong.
    """
    check_int('count', count, 0)
    check_int('radius', radius, 1)
    _check_grid(size, obstacle_probability, unreachable)
    inputs = np.zeros((count, 2, size, size), np.uint8)
    labels = np.zeros((count, size, size), np.uint8)
    missing = np.arange(count)
    while len(missing):
        points, blocked = _draw(rng, len(missing), radius, size, obstacle_probability)
        inputs[missing, 0] = 0
        for k in range(2):
            inputs[missing, 0, points[:, k, 0], points[:, k, 1]] = 1
        inputs[missing, 1] = blocked
        # a point lies on a shortest path if its two distances add up to the shortest
        there, back = grid_distances(blocked, points[:, 0]), grid_distances(blocked, points[:, 1])
        length = there[np.arange(len(missing)), points[:, 1, 0], points[:, 1, 1]]
        joined = (there >= 0) & (back >= 0)
        labels[missing] = joined & (there + back == length[:, None, None])
        missing = missing[length < 0] if unreachable == 'redraw' else missing[:0]
    return inputs, labels


@DATASETS.register_module()
class ShortestPaths(Dataset):
    """Examples of :func:`generate_shortest_paths`, the same ones for the same arguments everywhere.

    Each phase of the curriculum has examples of its own. ``CurriculumHook`` moves a training from phase to
    phase.

    Args:
        num_examples (int): Examples of a phase. Defaults to 5000, as in the paper.
        split (str): ``'train'``, ``'val'`` or ``'test'``: other examples. Defaults to 'train'.
        phase (int): From 0 to 4. Defaults to 0.
        seed (int): Other examples. Defaults to 0.
        size (int): Side of the grid. Defaults to 32.
        obstacle_probability (float): Defaults to 0.1.
        unreachable (str): See :func:`generate_shortest_paths`. Defaults to 'redraw'.
        lazy_init (bool): Draw the examples when they are first asked for. Defaults to False.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> dataset = ShortestPaths(num_examples=4, phase=1)
        >>> {key: tuple(value.shape) for key, value in dataset[0].items()}
        {'inputs': (2, 32, 32), 'targets': (32, 32)}
    """

    num_phases = len(CURRICULUM)

    def __init__(
        self,
        num_examples: int = 5000,
        split: str = 'train',
        phase: int = 0,
        seed: int = 0,
        size: int = 32,
        obstacle_probability: float = 0.1,
        unreachable: str = 'redraw',
        lazy_init: bool = False,
    ) -> None:
        check_int('num_examples', num_examples, 1)
        check_choice('split', split, _SPLITS)
        check_int('seed', seed, 0)
        _check_grid(size, obstacle_probability, unreachable)
        self.num_examples = num_examples
        self.split = split
        self.seed = seed
        self.options = dict(size=size, obstacle_probability=obstacle_probability, unreachable=unreachable)
        self._examples: tuple[np.ndarray, np.ndarray] | None = None
        self.set_phase(phase)
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """dict: What a runner hands to visualizer and metrics."""
        return dict(dataset_type='ShortestPaths', classes=('path',))

    def set_phase(self, phase: int) -> None:
        """Move to a phase of the curriculum.

        Args:
            phase (int): From 0 to 4.
        """
        check_int('phase', phase, 0, self.num_phases - 1)
        if getattr(self, 'phase', None) != phase:
            self.phase = phase
            self._examples = None

    def full_init(self) -> None:
        """Draw the examples of the phase, unless this was done."""
        if self._examples is None:
            rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), self.phase])
            self._examples = generate_shortest_paths(
                self.num_examples, CURRICULUM[self.phase], rng, **self.options
            )

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """An example.

        Args:
            index (int): Its number.

        Returns:
            dict[str, Tensor]: ``inputs``, shape (2, H, W), and ``targets``, shape (H, W), zeros and ones in
            float32.
        """
        self.full_init()
        inputs, labels = self._examples
        return dict(
            inputs=torch.from_numpy(inputs[index]).float(), targets=torch.from_numpy(labels[index]).float()
        )
