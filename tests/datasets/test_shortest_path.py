"""Compare the labels of the shortest path task with those of another algorithm."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from mmrecur.datasets import ShortestPaths, generate_shortest_paths
from mmrecur.datasets.shortest_path import CURRICULUM

Point = tuple[int, int]


def neighbours(point: Point, free: np.ndarray) -> list[Point]:
    row, column = point
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [(r, c) for r, c in around if 0 <= r < len(free) and 0 <= c < len(free) and free[r, c]]


def on_shortest_paths(free: np.ndarray, start: Point, end: Point) -> set[Point]:
    """Find the points of all shortest paths by breadth-first search with all predecessors."""
    level, parents, queue = {start: 0}, {start: []}, deque([start])
    while queue:
        point = queue.popleft()
        for other in neighbours(point, free):
            if other not in level:
                level[other], parents[other] = level[point] + 1, [point]
                queue.append(other)
            elif level[other] == level[point] + 1:
                parents[other].append(point)
    found, waiting = set(), [end] if end in level else []
    while waiting:
        point = waiting.pop()
        if point not in found:
            found.add(point)
            waiting += parents[point]
    return found


def queries(example: np.ndarray) -> list[Point]:
    return [tuple(map(int, point)) for point in np.argwhere(example[0])]


@pytest.mark.parametrize('probability', [0.1, 0.4])
@pytest.mark.parametrize('unreachable', ['redraw', 'empty'])
def test_labels_are_all_points_on_shortest_paths(probability: float, unreachable: str) -> None:
    inputs, labels = generate_shortest_paths(60, 10, np.random.default_rng(0), 16, probability, unreachable)
    joined = []
    for example, label in zip(inputs, labels):
        start, end = queries(example)
        expected = on_shortest_paths(example[1] == 0, start, end)
        assert expected == {tuple(map(int, point)) for point in np.argwhere(label)}
        joined.append(bool(expected))
    # many points cannot be reached if nearly half of the grid is obstacles
    assert all(joined) if unreachable == 'redraw' or probability == 0.1 else 5 < sum(joined) < 55


@pytest.mark.parametrize('phase', range(len(CURRICULUM)))
def test_phases_are_as_hard_as_they_should_be(phase: int) -> None:
    dataset = ShortestPaths(300, phase=phase)
    inputs = torch.stack([dataset[i]['inputs'] for i in range(len(dataset))]).numpy()
    apart = np.array([np.abs(np.subtract(*queries(example))) for example in inputs])
    assert apart.max() == CURRICULUM[phase] and (apart.sum(1) > 0).all()
    assert 2 * CURRICULUM[phase] + 1 == [5, 9, 13, 17, 21][phase]  # the grids of the paper
    assert not (inputs[:, 0] * inputs[:, 1]).any()
    assert inputs[:, 1].mean() == pytest.approx(0.1, abs=0.01)


def test_examples_depend_on_the_arguments_only() -> None:
    def first(**kwargs) -> torch.Tensor:
        return torch.stack([ShortestPaths(8, **kwargs)[i]['inputs'] for i in range(8)])

    np.random.seed(1)
    reference = first()
    np.random.seed(2)
    assert torch.equal(first(lazy_init=True), reference)
    others = [first(seed=1), first(split='val'), first(phase=1)]
    assert all(not torch.equal(other, reference) for other in others)
    dataset = ShortestPaths(8, phase=3)
    dataset.set_phase(0)
    assert torch.equal(dataset[5]['inputs'], reference[5])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(phase=5), 'phase=5, allowed: an integer from 0 to 4'),
        (dict(split='all'), "split='all', allowed: 'train', 'val', 'test'"),
        (dict(unreachable='skip'), "unreachable='skip', allowed: 'redraw', 'empty'"),
        (dict(obstacle_probability=1.0), 'obstacle_probability=1.0, allowed: a number from 0 to below 1'),
        (dict(obstacle_probability='a'), "obstacle_probability='a', allowed: a number"),
        (dict(num_examples=0), 'num_examples=0, allowed'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShortestPaths(**arguments)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(radius=0), 'radius=0, allowed: an integer of at least 1'),
        (dict(radius=2, size=1), 'size=1, allowed: an integer of at least 2'),
        (dict(radius=2, obstacle_probability=-0.1), 'obstacle_probability=-0.1, allowed: a number from 0'),
    ],
)
def test_grids_without_a_second_point_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_shortest_paths(1, rng=np.random.default_rng(0), **arguments)
