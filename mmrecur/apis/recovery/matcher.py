"""Train a student to match the outputs of its teacher, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.apis.recovery.outputs import Batch, OutputReader, groups_of
from mmrecur.engine.hooks.auxiliary_loss import collect_auxiliary_losses
from mmrecur.engine.randomness import own_randomness
from mmrecur.models.losses.feature_matching import matching_error
from mmrecur.models.norms import batch_norms

#: Part of the steps over which the learning rate rises.
WARMUP = 0.05
#: Relative error of the outputs up to which a student is near its teacher.
NEAR = 0.5
#: Highest learning rate for a student near its teacher, and for another one.
LEARNING_RATES = (3e-4, 3e-3)
#: Part of the steps in which the norms of a student far from its teacher use the statistics of their batch.
BATCH_STATISTICS = 0.5
#: Largest norm of the gradient.
MAX_GRADIENT = 1.0


class Matcher:
    """Trains the backbone of a student to match the outputs of its teacher.

    The loss is the squared relative error of each output, averaged over the outputs, plus the auxiliary
    losses of the student's modules. Half of the images are flipped, chosen at random in each step. AdamW
    trains the student; the learning rate rises linearly and then falls to zero along a cosine.

    The norms of a student near its teacher keep their statistics, as in evaluation, so that training and
    evaluation compute the same and the size of the batch does not matter. Those of another student use the
    statistics of the batch in the first half of the steps.

    Args:
        teacher (nn.Module): The teacher. It stays as it is.
        student (nn.Module): The student. Only its backbone is trained, or the whole network if it has none.
        modules (Sequence[str]): Names of the submodules to read, see :class:`OutputReader`.
        outputs (Sequence[str]): Names of the outputs to match.
        steps (int): Number of steps.
        lr (float, optional): Highest learning rate. None for one of :data:`LEARNING_RATES`.
        seed (int): Seed of the noise in the student, such as that of its gates.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        modules: Sequence[str],
        outputs: Sequence[str],
        steps: int,
        lr: float | None,
        seed: int,
    ) -> None:
        self.student, self.trained = student, getattr(student, 'backbone', student)
        self.parameters = [p for p in _trained_parameters(teacher, student) if p.requires_grad]
        if not self.parameters:
            raise ValueError('student has no trainable parameters, allowed: a backbone that is not frozen')
        if half := [p.dtype for p in self.parameters if p.dtype in (torch.float16, torch.bfloat16)]:
            raise ValueError(
                f'student has parameters of {half[0]}, allowed: float32 or float64; only the teacher '
                'may be in half precision'
            )
        self.targets, self.features = OutputReader(teacher, modules), OutputReader(student, modules)
        self.outputs = list(outputs)
        self.steps, self.lr, self.seed = steps, lr, seed
        self.done = 0
        self.is_near = True
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.0)

    def step(self, batch: Batch) -> float:
        """Train one step.

        Args:
            batch (Tensor or Sequence[Tensor]): Images. The gradients of several groups add up.

        Returns:
            float: Squared relative error, averaged over the outputs.

        Raises:
            FloatingPointError: If the error is not finite. The weights stay as they are.
        """
        groups = groups_of(batch)
        count = sum(map(len, groups))
        lr = LEARNING_RATES[0 if self.is_near else 1] if self.lr is None else self.lr
        for group in self.optimizer.param_groups:
            group['lr'] = lr * self._rate()
        self.optimizer.zero_grad()
        total = 0.0
        with own_randomness((self.seed + self.done) % 2**32), torch.enable_grad():
            for x in groups:
                error = self._error(_flipped(x))
                total += error.item() * len(x) / count
                loss = error + sum(collect_auxiliary_losses(self.trained).values())
                (loss * len(x) / count).backward()
        if not math.isfinite(total):
            raise FloatingPointError(
                f'step {self.done + 1}: the relative error of the outputs is {total} with lr={lr:g}, '
                'allowed: a finite one; choose a smaller lr'
            )
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT)
        self.optimizer.step()
        self.done += 1
        return total

    @property
    def first_frozen_step(self) -> int:
        """int: Number of steps after which batch norms keep their statistics."""
        return 0 if self.is_near else round(BATCH_STATISTICS * self.steps)

    def freeze_norms(self) -> None:
        """Let batch norms normalise with their statistics, as in evaluation."""
        for norm in batch_norms(self.trained).values():
            norm.eval()

    def _error(self, x: Tensor) -> Tensor:
        x = x.to(self.parameters[0].device)
        with torch.no_grad():
            targets = self.targets(x)
        features = self.features(x)
        return matching_error([features[n] for n in self.outputs], [targets[n] for n in self.outputs])

    def _rate(self) -> float:
        rise = (self.done + 1) / max(1, WARMUP * self.steps)
        return min(1.0, rise) * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return dict(
            done=self.done,
            is_near=self.is_near,
            student=self.student.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Args:
            state (Mapping): Result of :meth:`state`.
        """
        self.done, self.is_near = state['done'], state['is_near']
        self.student.load_state_dict(state['student'])
        self.optimizer.load_state_dict(state['optimizer'])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the backbone into training mode and let only the trained parameters get gradients.

        On leaving the context, all modes and ``requires_grad`` are as before, and no gradients are left.
        """
        trained = {id(parameter) for parameter in self.parameters}
        others = [p for p in self.student.parameters() if p.requires_grad and id(p) not in trained]
        modes = {part: part.training for part in self.student.modules()}
        try:
            for parameter in others:
                parameter.requires_grad_(False)
            self.student.eval()
            self.trained.train()
            yield
        finally:
            self.optimizer.zero_grad()
            for parameter in others:
                parameter.requires_grad_(True)
            for part, mode in modes.items():
                part.training = mode


def _flipped(x: Tensor) -> Tensor:
    """Return images, each mirrored with a probability of 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(mirrored.to(x.device), x.flip(-1), x)


def _trained_parameters(teacher: nn.Module, student: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the backbone, and those of the neck that the teacher does not have."""
    if not hasattr(student, 'backbone'):
        return list(student.parameters())
    known = {name: parameter.shape for name, parameter in teacher.named_parameters()}
    neck = [*student.neck.named_parameters()] if getattr(student, 'neck', None) is not None else []
    new = [parameter for name, parameter in neck if known.get(f'neck.{name}') != parameter.shape]
    return [*student.backbone.parameters(), *new]
