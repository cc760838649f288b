"""A data set in a network with gated loops: iterations, maps at the gates, accuracy and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrecur.analysis.complexity import is_detector
from mmrecur.analysis.gate_maps import GateMaps
from mmrecur.analysis.loop_complexity import LoopComplexity, measure_loops
from mmrecur.analysis.loop_recorder import LoopRecorder, find_loop_backbone
from mmrecur.analysis.loop_times import LoopTimes


@dataclass(frozen=True)
class LoopRun:
    """Results of running a data set through a network with gated loops.

    Attributes:
        times (LoopTimes): Iterations for each image.
        maps (list[GateMaps]): Statistics of the maps at the gates.
        labels (list[int or None]): Class of each image; None for images without exactly one label.
        correct (list[bool or None]): Whether each image was classified correctly; None without a label.
        work (LoopComplexity): Multiply-adds for an image of ``input_size``. For a detector they are those of
            the backbone, because the rest depends on the number of objects.
        input_size (tuple[int, int]): Height and width of the first image.
        counted (str): Part whose multiply-adds were counted, ``'model'`` or ``'backbone'``.
    """

    times: LoopTimes
    maps: list[GateMaps]
    labels: list[int | None]
    correct: list[bool | None]
    work: LoopComplexity
    input_size: tuple[int, int]
    counted: str

    def accuracy(self) -> dict[int, tuple[int, float]]:
        """Group the images by the number of iterations and compute the accuracy of each group.

        Returns:
            dict[int, tuple[int, float]]: Number of images and accuracy, by the iterations of all loops
            together in ascending order; empty unless every image has a label.
        """
        if None in self.correct:
            return {}
        totals, correct = self.times.totals, np.array(self.correct, float)
        groups = {int(total): correct[totals == total] for total in np.unique(totals)}
        return {total: (len(own), float(own.mean())) for total, own in groups.items()}

    def summary(self) -> dict[str, Any]:
        """Summarise the results as nested dicts that can be written as JSON.

        Returns:
            dict[str, Any]:

            - ``num_images``;
            - ``iterations`` of all loops together: ``limit``, ``mean``, ``std`` (of these images, not an
              estimate for others) and ``histogram``;
            - ``loops``: the same for each loop, and its ``gates``: for each gated iteration the ``rate``, the
              numbers of images ``passed`` and ``skipped``, and the ``discrepancy`` of their maps;
            - ``multiply_adds``: ``average``, ``maximum``, their ``ratio``, the part that was ``counted`` and
              the ``input_size``;
            - ``accuracy`` by iterations, if every image has a label.
        """
        times = self.times
        average = times.average_work(self.work)
        result = dict(
            num_images=len(times.totals),
            iterations=_distribution(times.totals, times.limit),
            loops={name: self._summary_of_loop(name) for name in times.counts},
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

    def _summary_of_loop(self, name: str) -> dict[str, Any]:
        gates = [gate for gate in self.maps if gate.block == name]
        rates = self.times.rates()[name][-len(gates) :]  # without the iterations that have no gate
        described = [
            dict(
                rate=rate,
                passed=gate.passed.images,
                skipped=gate.skipped.images,
                discrepancy=gate.discrepancy(),
            )
            for rate, gate in zip(rates, gates)
        ]
        return dict(_distribution(self.times.counts[name], self.times.limits[name]), gates=described)


def _distribution(counts: np.ndarray, limit: int) -> dict[str, Any]:
    histogram = np.bincount(counts, minlength=limit + 1).tolist()
    return dict(limit=limit, mean=float(counts.mean()), std=float(counts.std()), histogram=histogram)


def run_loops(model: nn.Module, batches: Iterable[dict]) -> LoopRun:
    """Run a data set through a network with gated loops.

    Only the backbone of a detector runs.

    Args:
        model (nn.Module): Classifier or detector in evaluation mode.
        batches (Iterable[dict]): At least one batch, as the data loader of a config yields it.

    Returns:
        LoopRun: The results.

    Raises:
        ValueError: If the model has no backbone with gates, or if the backbone does not run exactly once for
            each image.
    """
    name, backbone = find_loop_backbone(model)
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
    """Return for each image its label and whether it was classified correctly."""
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
