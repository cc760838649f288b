"""How often the loops of a recursive backbone run for each image, and on what the gates decide.

Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019, Section 4.2: the distribution of the loop times
(Figure 8), easy and hard images (Figure 9), feature maps that gates let pass or skipped (Figure 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrecur.analysis.complexity import is_detector
from mmrecur.analysis.gate_maps import GateMaps, MapStatistics
from mmrecur.analysis.loop_complexity import LoopComplexity, measure_loops
from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.loop.block import LoopBlock, gated_loop_blocks


@dataclass(frozen=True)
class LoopTimes:
    """Iterations that loops ran for a number of images.

    Attributes:
        limits (dict[str, int]): Iterations at most of each loop by name.
        counts (dict[str, np.ndarray]): Iterations of each image, shape (N,), by the loop's name.
    """

    limits: dict[str, int]
    counts: dict[str, np.ndarray]

    @property
    def limit(self) -> int:
        """int: Iterations at most of all loops together."""
        return sum(self.limits.values())

    @property
    def totals(self) -> np.ndarray:
        """np.ndarray: Iterations of all loops together for each image, shape (N,)."""
        return np.sum([*self.counts.values()], axis=0)

    def rates(self) -> dict[str, list[float | None]]:
        """Share of the images that reached each gate which it let pass.

        Returns:
            dict[str, list]: A share for each iteration of a loop, 1 for one without a gate; None where no
            image got.
        """
        result: dict[str, list[float | None]] = {}
        for name, counts in self.counts.items():
            reached = [(counts >= k).sum().item() for k in range(self.limits[name] + 1)]
            result[name] = [after / before if before else None for before, after in zip(reached, reached[1:])]
        return result

    def average_work(self, work: LoopComplexity) -> float:
        """Multiply-adds for the average image.

        Args:
            work (LoopComplexity): Those of the network's parts, with loops of the same names.

        Returns:
            float: The average.
        """
        return work.average({name: [rate or 0.0 for rate in own] for name, own in self.rates().items()})

    def easiest_and_hardest(self, number: int) -> tuple[list[int], list[int]]:
        """Find the images with the fewest and the most iterations.

        Args:
            number (int): Images of each; at most half of all, rounded up, so that none is both.

        Returns:
            tuple[list[int], list[int]]: Indices, fewest iterations first and most first. If not all with the
            same iterations are taken, those that are stand evenly spaced in the data, which may be in the
            order of its classes.
        """
        totals = self.totals
        number = min(number, -(-len(totals) // 2))
        easiest = _lowest(totals, np.arange(len(totals)), number)
        rest = np.setdiff1d(np.arange(len(totals)), easiest)
        return easiest, _lowest(-totals, rest, min(number, len(rest)))

    def easiest_and_hardest_of_classes(
        self, labels: Sequence[int], number: int
    ) -> tuple[list[int], list[int]]:
        """Find the images of a class with the fewest and the most iterations, for several classes.

        Args:
            labels (Sequence[int]): Class of each image, as many as images.
            number (int): Classes to take at most: those whose two images differ most, of equal ones the
                first.

        Returns:
            tuple[list[int], list[int]]: Indices of the easiest and of the hardest images, a class at each
            place. Classes with a single image are left out.
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
    """Those of the candidates with the lowest values, in ascending order; of equals at the end a spread."""
    order = candidates[np.argsort(values[candidates], kind='stable')]
    if not number:
        return []
    last = values[order[number - 1]]
    below, equal = order[values[order] < last], order[values[order] == last]
    missing = number - len(below)
    return [*below.tolist(), *equal[np.arange(missing) * len(equal) // missing].tolist()]


class LoopRecorder:
    """Record what gates decide in evaluation, within a context.

    Args:
        backbone (LoopBackbone): With gates; in any form, with samples left out or masked.
        with_maps (bool): Whether to take statistics of the maps at the gates. Defaults to True.

    Attributes:
        maps (list[GateMaps]): Of all iterations of all loops.

    Raises:
        ValueError: If the backbone has no gates, or runs in training mode.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> model = DRResNet(depth=16).eval()
        >>> with LoopRecorder(model) as recorder, torch.no_grad():
        ...     features = model(torch.rand(4, 3, 32, 32))
        >>> recorder.times().totals
        array([4, 4, 4, 4])
    """

    def __init__(self, backbone: LoopBackbone, with_maps: bool = True) -> None:
        self._blocks = gated_loop_blocks(backbone)
        if not self._blocks:
            raise ValueError(_NO_GATES.format(type(backbone).__name__))
        self.with_maps = with_maps
        self.maps = [
            GateMaps(name, k, MapStatistics(), MapStatistics())
            for name, block in self._blocks.items()
            for k in range(block.first_gated, block.num_iterations)
        ]
        self._counts: dict[str, list[Tensor]] = {name: [] for name in self._blocks}
        self._handles: list[Any] = []

    def __enter__(self) -> LoopRecorder:
        for name, block in self._blocks.items():
            self._handles += self._watch(name, block)
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def times(self) -> LoopTimes:
        """What was recorded.

        Returns:
            LoopTimes: Of all images so far, in the order in which they came.
        """
        limits = {name: block.num_iterations for name, block in self._blocks.items()}
        counts = {
            name: torch.cat(own).cpu().numpy() if own else np.empty(0, np.int64)
            for name, own in self._counts.items()
        }
        return LoopTimes(limits, counts)

    def _watch(self, name: str, block: LoopBlock) -> list[Any]:
        maps = [maps for maps in self.maps if maps.block == name]
        rows = counts = iteration = None

        def start(module: nn.Module, args: tuple) -> None:
            nonlocal rows, counts, iteration
            if module.training:
                raise ValueError('the backbone is in training mode, allowed: evaluation, after eval()')
            x = args[0]
            rows, iteration = torch.arange(len(x), device=x.device), 0
            counts = torch.full((len(x),), block.first_gated, device=x.device)
            self._counts[name].append(counts)

        def decide(gate: nn.Module, args: tuple, passed: Tensor) -> None:
            nonlocal rows, iteration
            x = args[0]
            if len(passed) > len(rows):  # a masked loop asks for samples that have left
                x, passed = x[rows], passed[rows]
            if self.with_maps:
                maps[iteration].passed.add(x[passed])
                maps[iteration].skipped.add(x[~passed])
            rows, iteration = rows[passed], iteration + 1
            counts[rows] += 1

        return [block.register_forward_pre_hook(start), block.gate.register_forward_hook(decide)]


_NO_GATES = '{} has no gates, allowed: a backbone with gated loops, such as mmrecur.DRResNet'


def find_backbone(model: nn.Module) -> tuple[str, LoopBackbone]:
    """Find the recursive backbone of a model.

    Args:
        model (nn.Module): A backbone, classifier or detector.

    Returns:
        tuple[str, LoopBackbone]: Its name in the model, ``''`` for the model itself, and the backbone.

    Raises:
        ValueError: If there is none with gates.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoopBackbone) and gated_loop_blocks(module):
            return name, module
    backbone = getattr(model, 'backbone', model)
    raise ValueError(_NO_GATES.format(type(backbone).__name__))


@dataclass(frozen=True)
class LoopRun:
    """A data set after it went through a network with loops.

    Attributes:
        times (LoopTimes): Iterations of each image.
        maps (list[GateMaps]): What came to the gates.
        labels (list[int or None]): Class of each image; None where there is not one.
        correct (list[bool or None]): For each image whether its class was found; None without labels.
        work (LoopComplexity): Multiply-adds for an image as large as the first; of a detector those of the
            backbone, since the rest depends on what is found.
        input_size (tuple[int, int]): Height and width of that image.
        counted (str): ``'model'`` or ``'backbone'``, whose multiply-adds these are.
    """

    times: LoopTimes
    maps: list[GateMaps]
    labels: list[int | None]
    correct: list[bool | None]
    work: LoopComplexity
    input_size: tuple[int, int]
    counted: str

    def accuracy(self) -> dict[int, tuple[int, float]]:
        """Accuracy by the iterations.

        Returns:
            dict[int, tuple[int, float]]: By the iterations of all loops, ascending, the number of images and
            the share of them that were classified correctly; empty unless all have labels.
        """
        if None in self.correct:
            return {}
        totals, correct = self.times.totals, np.array(self.correct, float)
        groups = {int(total): correct[totals == total] for total in np.unique(totals)}
        return {total: (len(own), float(own.mean())) for total, own in groups.items()}

    def summary(self) -> dict[str, Any]:
        """All but the single images.

        Returns:
            dict: ``num_images``; ``iterations`` of all loops together with ``limit``, ``mean``, ``std`` (of
            the images, not an estimate) and ``histogram``; the same in ``loops`` for each loop, with its
            ``gates``: of each iteration the ``rate``, the images that ``passed`` and were ``skipped``, and
            the ``discrepancy`` of their maps; ``multiply_adds``, their ``average``, ``maximum`` and
            ``ratio``, of what they are ``counted``, and the ``input_size``; ``accuracy`` by iterations if
            there are labels.
        """
        times, rates = self.times, self.times.rates()
        average = times.average_work(self.work)
        loops = {name: _distribution(own, times.limits[name]) for name, own in times.counts.items()}
        for name, loop in loops.items():
            gates = [gate for gate in self.maps if gate.block == name]
            gated = rates[name][-len(gates) :]  # the iterations that have a gate
            loop['gates'] = [
                dict(
                    rate=rate,
                    passed=gate.passed.images,
                    skipped=gate.skipped.images,
                    discrepancy=gate.discrepancy(),
                )
                for rate, gate in zip(gated, gates)
            ]
        result = dict(
            num_images=len(times.totals),
            iterations=_distribution(times.totals, times.limit),
            loops=loops,
            multiply_adds=dict(
                average=average,
                maximum=self.work.maximum,
                ratio=average / self.work.maximum,
                counted=self.counted,
                input_size=list(self.input_size),
            ),
        )
        accuracy = self.accuracy()
        if accuracy:
            result['accuracy'] = {k: dict(images=n, accuracy=share) for k, (n, share) in accuracy.items()}
        return result


def _distribution(counts: np.ndarray, limit: int) -> dict[str, Any]:
    histogram = np.bincount(counts, minlength=limit + 1).tolist()
    return dict(limit=limit, mean=float(counts.mean()), std=float(counts.std()), histogram=histogram)


def run_loops(model: nn.Module, batches: Iterable[dict]) -> LoopRun:
    """Send a data set through a network with loops.

    Args:
        model (nn.Module): A classifier or a detector, whose heads do not run, in evaluation mode.
        batches (Iterable[dict]): At least one batch, as the loader of a config gives them.

    Returns:
        LoopRun: What happened.

    Raises:
        ValueError: If the model has no backbone with gates, or this does not run once for each image.
    """
    name, backbone = find_backbone(model)
    labels: list[int | None] = []
    correct: list[bool | None] = []
    first: list[Tensor] = []

    def keep_first(module: nn.Module, args: tuple) -> None:
        if not first:
            first.append(args[0][:1])

    handle = backbone.register_forward_pre_hook(keep_first)
    try:
        with LoopRecorder(backbone) as recorder, torch.no_grad():
            for batch in batches:
                for label, is_correct in _run_batch(model, backbone, batch):
                    labels.append(label)
                    correct.append(is_correct)
    finally:
        handle.remove()
    times = recorder.times()
    if len(times.totals) != len(correct):
        raise ValueError(f'{len(times.totals)} images went through the backbone, allowed: {len(correct)}')
    counted = 'backbone' if is_detector(model) else 'model'
    work = measure_loops(backbone if counted == 'backbone' else model, first[0])
    work = replace(work, loops={loop.removeprefix(f'{name}.'): own for loop, own in work.loops.items()})
    return LoopRun(times, recorder.maps, labels, correct, work, tuple(first[0].shape[-2:]), counted)


def _run_batch(model: nn.Module, backbone: nn.Module, batch: dict) -> list[tuple[int | None, bool | None]]:
    """Label of each image and whether it was found."""
    if is_detector(model):
        inputs = model.data_preprocessor(batch, False)['inputs']
        backbone(inputs)
        return [(None, None)] * len(inputs)
    return [_label_and_success(sample) for sample in model.test_step(batch)]


def _label_and_success(sample: Any) -> tuple[int | None, bool | None]:
    truth, found = getattr(sample, 'gt_label', None), getattr(sample, 'pred_label', None)
    if truth is None or len(truth) != 1:
        return None, None
    return truth.item(), None if found is None else bool(truth.item() == found.item())
