"""Generate examples of the shortest path task on grids with obstacles.

Each phase of the curriculum allows a larger distance between the two end points.

Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019, Section 4.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmrecur.checks import check_choice, check_int
from mmrecur.registry import DATASETS

#: Maximum distance of the two points along each axis, by phase: windows of 5x5, 9x9, ... 21x21 points.
CURRICULUM = (2, 4, 6, 8, 10)
_SPLITS = ('train', 'val', 'test')


def grid_distances(blocked: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the lengths of shortest paths on grids.

    A path moves up, down, left or right, one point at a time, and avoids obstacles.

    Args:
        blocked (np.ndarray): Obstacles, of shape (N, H, W) and type bool. A start must not be an obstacle.
        starts (np.ndarray): Row and column of each start, of shape (N, 2).

    Returns:
        np.ndarray: Distance of every point from the start, of shape (N, H, W) and type int16; -1 for points
        that no path reaches.
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
    check_int('size', size, 2)  # the two points must differ
    is_number = isinstance(obstacle_probability, (int, float)) and not isinstance(obstacle_probability, bool)
    if not is_number or not 0 <= obstacle_probability < 1:
        raise ValueError(
            f'obstacle_probability={obstacle_probability!r}, allowed: a number from 0 to below 1'
        )
    check_choice('unreachable', unreachable, ('redraw', 'empty'))


def _draw(
    rng: np.random.Generator, count: int, radius: int, size: int, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw query points of shape (count, 2, 2) and obstacles of shape (count, size, size)."""
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
    """Draw random examples of the task.

    The first query point is uniform on the grid. The second one is uniform among the points within ``radius``
    of it along each axis. Every other point is an obstacle with the given probability. The labels mark all
    points of all shortest paths, including the query points.

    Args:
        count (int): Number of examples.
        radius (int): Maximum distance of the query points along an axis.
        rng (np.random.Generator): Random generator.
        size (int): Side of the grid. Defaults to 32.
        obstacle_probability (float): Probability of an obstacle, in [0, 1). Defaults to 0.1.
        unreachable (str): Treatment of query points that no path joins: ``'redraw'`` draws another example,
            ``'empty'`` marks no point. Defaults to 'redraw'.

    Returns:
        tuple[np.ndarray, np.ndarray]: Inputs of shape (count, 2, size, size) and labels of shape
        (count, size, size), both of type uint8. The first channel of the inputs marks the query points, the
        second one the obstacles.

    Raises:
        ValueError: If an argument is not allowed.
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
        # A point lies on a shortest path if its distances from both ends add up to the length of the path.
        there, back = grid_distances(blocked, points[:, 0]), grid_distances(blocked, points[:, 1])
        length = there[np.arange(len(missing)), points[:, 1, 0], points[:, 1, 1]]
        joined = (there >= 0) & (back >= 0)
        labels[missing] = joined & (there + back == length[:, None, None])
        missing = missing[length < 0] if unreachable == 'redraw' else missing[:0]
    return inputs, labels


@DATASETS.register_module()
class ShortestPaths(Dataset):
    """Data set of examples of :func:`generate_shortest_paths` that depend on the arguments only.

    Each phase of the curriculum has different examples. ``CurriculumHook`` advances the phase.

    Args:
        num_examples (int): Number of examples in each phase. Defaults to 5000, as in the paper.
        split (str): ``'train'``, ``'val'`` or ``'test'``; their examples differ. Defaults to 'train'.
        phase (int): Phase of the curriculum, from 0 to 4. Defaults to 0.
        seed (int): Seed of the examples. Defaults to 0.
        size (int): Side of the grid. Defaults to 32.
        obstacle_probability (float): Probability of an obstacle. Defaults to 0.1.
        unreachable (str): See :func:`generate_shortest_paths`. Defaults to 'redraw'.
        lazy_init (bool): Draw the examples on first access. Defaults to False.

    Raises:
        ValueError: If an argument is not allowed.

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
        """dict: Metadata for visualizers and metrics."""
        return dict(dataset_type='ShortestPaths', classes=('path',))

    def set_phase(self, phase: int) -> None:
        """Select a phase of the curriculum.

        Args:
            phase (int): From 0 to 4.
        """
        check_int('phase', phase, 0, self.num_phases - 1)
        if getattr(self, 'phase', None) != phase:
            self.phase = phase
            self._examples = None

    def full_init(self) -> None:
        """Draw the examples of the phase if they are missing."""
        if self._examples is None:
            rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), self.phase])
            self._examples = generate_shortest_paths(
                self.num_examples, CURRICULUM[self.phase], rng, **self.options
            )

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return an example.

        Args:
            index (int): Index of the example.

        Returns:
            dict[str, Tensor]: ``inputs`` of shape (2, H, W) and ``targets`` of shape (H, W), containing zeros
            and ones in float32.
        """
        self.full_init()
        inputs, labels = self._examples
        return dict(
            inputs=torch.from_numpy(inputs[index]).float(), targets=torch.from_numpy(labels[index]).float()
        )
