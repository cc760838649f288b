"""Recover the accuracy of a network from the feature maps of the network that it replaces."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.apis.recovery.images import RecoveryImages
from mmrecur.apis.recovery.matcher import NEAR, Matcher
from mmrecur.apis.recovery.outputs import Batch, choose_outputs, groups_of, relative_errors
from mmrecur.apis.recovery.report import RecoveryReport, StageResult
from mmrecur.apis.recovery.state import (
    RecoveryState,
    layout_checksum,
    text_checksum,
    weights_checksum,
)
from mmrecur.checkpoint.calibrate_gates import calibrate_gates, has_target_rate
from mmrecur.checks import check_int
from mmrecur.engine.randomness import own_randomness
from mmrecur.models.layers.common.modes import evaluation_mode
from mmrecur.models.norms import batch_norms, reestimate_norms

#: Called after each step with the number of steps done and the error of the step.
Callback = Callable[[int, float], None]
#: Returns metrics of the student by name.
Evaluate = Callable[[nn.Module], Mapping[str, float]]
#: Largest relative error that rounding alone explains; such a student has nothing to recover.
EXACT = 1e-4
#: Number of batches on which errors are measured.
ERROR_BATCHES = 8
#: Number of pixels of the images that are kept for this and for the calibration of gates.
MAX_PIXELS = 1 << 24
#: Number of batches on which the statistics of norms are estimated.
NORM_BATCHES = 50


def recover(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[Batch],
    steps: int = 1000,
    lr: float | None = None,
    match: Sequence[str] | None = None,
    callback: Callback | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> RecoveryReport:
    """Train a student to compute the feature maps of its teacher, on images without labels.

    After an inexact swap, the student starts near its teacher (see :func:`mmrecur.checkpoint.graft`) and has
    lost accuracy. The recovery re-estimates the statistics of its norms, then trains its backbone to match
    the outputs of the teacher's stages and neck. Necks and heads are not trained, except parameters that the
    teacher lacks or has in another shape. Each step uses one batch. Gates with a target rate are calibrated
    at the end, see :func:`calibrate_gates`. A stage that does not lower the errors leaves the student as it
    was, except the training of gates.

    Args:
        teacher (nn.Module): The trained network: a detector, segmenter or classifier of any library with a
            ``backbone``, a backbone, or any other network. It is not changed.
        student (nn.Module): The network to recover, with the weights that it starts from. It is left in the
            mode that it was in.
        batches (Iterable): Preprocessed images, see :class:`RecoveryImages`. A batch is a tensor of shape
            (N, C, H, W), or a sequence of such tensors of different sizes. The batches are iterated over
            again until the steps are done, so an iterator that ends is not enough. A loader may shuffle: it
            draws from generators with seeds of their own.
        steps (int): Number of steps; 0 only re-estimates the norms. Defaults to 1000.
        lr (float, optional): Highest learning rate of AdamW. Defaults to None: 3e-4 if the student starts
            near its teacher (its outputs have a relative error of at most 0.5), else 3e-3.
        match (Sequence[str], optional): Names of the submodules whose outputs are matched, such as
            ``['backbone', 'neck']``. Defaults to None: all stages that both networks have under the same
            name, the backbone, and the neck.
        callback (Callable, optional): Called after each step with the number of steps done and the error of
            the step. Defaults to None.
        evaluate (Callable, optional): Called with the student at the start and after each stage; its metrics
            are part of the report. Defaults to None.
        checkpoint (str or Path, optional): File in which the state is saved twice a minute. If it exists,
            the recovery continues from it, with the same result as without the interruption. Defaults to
            None.
        seed (int): Seed of the noise in the student. Defaults to 0.

    Returns:
        RecoveryReport: Errors, metrics and duration of each stage.

    Raises:
        TypeError, ValueError: If an argument is wrong, or if the outputs of both networks do not match.
        FloatingPointError: If the error of a step is not finite. The student has the weights from before
            the stage.
        CheckpointError: If ``checkpoint`` is damaged or belongs to another recovery.

    Example:
        >>> import torch
        >>> from mmrecur.apis import recover
        >>> from mmrecur.checkpoint import graft
        >>> from mmrecur.models.backbones import ResNetShared
        >>> teacher = ResNetShared(20, base_channels=8, share=None)
        >>> student = ResNetShared(20, base_channels=8, shared_rank=6)
        >>> _ = student.load_state_dict(graft(teacher.state_dict(), student)[0])
        >>> images = [torch.rand(8, 3, 32, 32) for _ in range(4)]
        >>> report = recover(teacher, student, images, steps=20)
        >>> [stage.name for stage in report.stages]
        ['start', 'norms', 'match']
    """
    check_recovery(steps, lr, seed)
    with own_randomness(seed), evaluation_mode(teacher):
        return _Recovery(teacher, student, batches, steps, lr, match, evaluate, checkpoint, seed).run(
            callback
        )


def check_recovery(steps: int, lr: float | None, seed: int) -> None:
    """Raise a ValueError unless these arguments of :func:`recover` are allowed."""
    check_int('steps', steps, 0)
    check_int('seed', seed, 0, 2**32 - 1)
    is_number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
    if lr is not None and not (is_number and 0 < lr < math.inf):
        raise ValueError(f'lr={lr!r}, allowed: None, a number above 0')


class _Recovery:
    """Runs the stages of a recovery and reports on each."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        batches: Iterable[Batch],
        steps: int,
        lr: float | None,
        match: Sequence[str] | None,
        evaluate: Evaluate | None,
        checkpoint: str | Path | None,
        seed: int,
    ) -> None:
        self.teacher, self.student, self.batches = teacher, student, batches
        self.evaluate, self.seed = evaluate, seed
        if not hasattr(batches, '__iter__') and not hasattr(batches, '__getitem__'):
            raise TypeError(f'batches={batches!r}, allowed: an iterable such as a list or a DataLoader')
        if isinstance(batches, Iterator):
            raise ValueError(
                f'batches is a {type(batches).__name__}, which ends; allowed: an iterable that can be '
                'iterated over again, such as a list or a DataLoader'
            )
        self._first = first_images(islice(self._one_pass(), ERROR_BATCHES))
        if not self._first:
            raise ValueError('batches has no images, allowed: at least one batch')
        with evaluation_mode(student):
            modules, outputs = choose_outputs(teacher, student, self._first[0], match)
        self.matcher = Matcher(teacher, student, modules, outputs, steps, lr, seed)
        self._begin, self._spent = 0.0, 0.0  # start of the present stage; its duration before an interruption
        self.report = RecoveryReport((_num_parameters(teacher), _num_parameters(student)))
        self._before: dict[str, Tensor] = {}  # the student before the outputs are matched
        self._is_kept = True  # whether the present stage lowers the errors
        sizes = list(self.report.parameters)
        settings = dict(steps=steps, lr=lr, outputs=outputs, seed=seed, parameters=sizes)
        self.state = RecoveryState(checkpoint, settings, _identity(teacher, student, batches))

    def run(self, callback: Callback | None) -> RecoveryReport:
        """Run the stages that have not been done yet, and return the report."""
        saved = self.state.load()
        if saved is not None:
            self.matcher.load(saved['matcher'])
            self.report, self._before = RecoveryReport.from_dict(saved['report']), saved['before']
            self._spent = saved['spent']
        if not self.report.stages:
            with self._stage('start'):
                pass
        if len(self.report.stages) == 1:
            with self._stage('norms'):
                self._settle_norms()
        if len(self.report.stages) == 2 and self.matcher.steps and not self.report.error <= EXACT:
            with self._stage('match'):
                self._match(callback)
        if len(self.report.stages) == 3 and has_target_rate(self.matcher.trained):
            with self._stage('gates'):
                calibrate_gates(self.matcher.trained, self._largest_group())
        return self.report

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage, then measure the student and save the state."""
        self._begin, self._is_kept = time.monotonic(), True
        yield
        seconds, self._spent = self._spent + time.monotonic() - self._begin, 0.0
        metrics = {}
        if self.evaluate is not None:
            with evaluation_mode(self.student):
                metrics = {name: float(value) for name, value in self.evaluate(self.student).items()}
        self.report.stages.append(StageResult(name, self._errors(), metrics, seconds, self._is_kept))
        self._save(0.0)

    def _reestimate(self) -> None:
        trained = self.matcher.trained
        norms = batch_norms(trained)
        if norms:
            names = {id(norm) for norm in norms.values()}
            chosen = [name for name, module in self.student.named_modules() if id(module) in names]
            reestimate_norms(self.student, self._one_pass(), chosen)

    def _settle_norms(self) -> None:
        """Re-estimate the statistics of norms."""
        before = _copy(self.student)
        self._reestimate()
        self._keep_if_better(before)

    def _keep_if_better(self, before: Mapping[str, Tensor]) -> None:
        """Restore the student as it was before a stage that has not lowered the errors."""
        after, start = _mean_square(self._errors()), _mean_square(self.report.stages[-1].errors)
        self._is_kept = math.isfinite(after) and not after >= start  # the error before may be NaN
        if not self._is_kept:
            self.student.load_state_dict(before)

    def _match(self, callback: Callback | None) -> None:
        matcher = self.matcher
        if not matcher.done:
            self._before = _copy(self.student)
            matcher.is_near = self.report.error <= NEAR
        with matcher.training():
            for batch in islice(self._endless(matcher.done), matcher.steps - matcher.done):
                if matcher.done == matcher.first_frozen_step > 0:
                    self._reestimate()
                if matcher.done >= matcher.first_frozen_step:
                    matcher.freeze_norms()
                self.report.history.append(self._step(batch))
                if self.state.is_due():
                    self._save(self._spent + time.monotonic() - self._begin)
                if callback is not None:
                    callback(matcher.done, self.report.history[-1])
        # gates that let everything pass have smaller errors than those that keep their rate
        if not has_target_rate(matcher.trained):
            self._keep_if_better(self._before)

    def _step(self, batch: Batch) -> float:
        try:
            return self.matcher.step(batch)
        except FloatingPointError:
            self.student.load_state_dict(self._before)
            raise

    def _errors(self) -> dict[str, float]:
        matcher = self.matcher
        with evaluation_mode(self.student):
            return relative_errors(matcher.targets, matcher.features, matcher.outputs, self._first)

    def _largest_group(self) -> Tensor:
        """Return the images of the size that most images of the first batches have."""
        by_size: dict[tuple[int, ...], list[Tensor]] = {}
        for x in first_images(self._one_pass()):
            by_size.setdefault(tuple(x.shape[1:]), []).append(x)
        groups = max(by_size.values(), key=lambda group: sum(map(len, group)))
        return torch.cat(groups).to(self.matcher.parameters[0])

    def _one_pass(self) -> Iterator[Batch]:
        """Yield the batches of the first pass, at most :data:`NORM_BATCHES`, the same ones in each call."""
        if isinstance(self.batches, RecoveryImages):  # each of its passes has another order
            return islice(self.batches.batches(), min(len(self.batches), NORM_BATCHES))
        return islice(_seeded_pass(self.batches, self.seed), NORM_BATCHES)

    def _endless(self, start: int) -> Iterator[Batch]:
        """Yield the batches of pass after pass, beginning with the one at index ``start``."""
        if isinstance(self.batches, RecoveryImages):  # it reads no image of the batches that are left out
            yield from self.batches.batches(start=start)
            return
        index = 0
        for number in itertools.count():
            before = index
            for batch in _seeded_pass(self.batches, self.seed + (number << 16)):
                if index >= start:
                    yield batch
                index += 1
            if index == before:
                raise ValueError(
                    f'batches has no images when it is iterated over again, after {index} batches; allowed: '
                    'an iterable that can be iterated over again'
                )

    def _save(self, spent: float) -> None:
        report, before = self.report.to_dict(), self._before
        self.state.save(dict(matcher=self.matcher.state(), report=report, before=before, spent=spent))


def first_images(batches: Iterable[Batch], pixels: int = MAX_PIXELS) -> list[Tensor]:
    """Return the images of the first batches, about as many as have the given number of pixels."""
    found: list[Tensor] = []
    for batch in batches:
        for x in groups_of(batch):
            found.append(x)
            pixels -= x[:, 0].numel()
            if pixels <= 0:
                return found
    return found


def _seeded_pass(batches: Iterable[Batch], seed: int) -> Iterator[Batch]:
    """Yield the batches of a pass; a loader that shuffles or augments draws the same for the same seed."""
    with own_randomness(seed % 2**32):
        iterator = iter(batches)
    for index in itertools.count():
        with own_randomness((seed + index) % 2**32):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _identity(teacher: nn.Module, student: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
    """Return what tells this recovery from others that have the same settings."""
    found = dict(teacher=weights_checksum(teacher), student=layout_checksum(student))
    if isinstance(batches, RecoveryImages):
        return found | dict(images=text_checksum('\n'.join(batches.names)), batch_size=batches.batch_size)
    return found | (dict(batches=len(batches)) if isinstance(batches, Sized) else {})


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _mean_square(errors: Mapping[str, float]) -> float:
    return sum(error**2 for error in errors.values()) / len(errors)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
