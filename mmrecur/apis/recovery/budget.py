"""Choose how a backbone shares under a budget of parameters, from the measured damage."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmrecur.apis.recovery.outputs import OutputReader, choose_outputs, relative_errors
from mmrecur.checkpoint import graft
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone, DRResNet, ResNetShared

#: Options of one stage by name.
Level = Mapping[str, Any]


@dataclass(frozen=True)
class SharingPlan:
    """How each stage of a backbone shares.

    Attributes:
        options (dict[str, tuple]): Options of the backbone, with one value for each stage.
        parameters (int): Parameters of the backbone.
        damage (float): Estimated relative error of the matched outputs before the recovery. The squared
            errors of the stages, measured one at a time, add up.
    """

    options: dict[str, tuple]
    parameters: int
    damage: float

    def __str__(self) -> str:
        """Return the options as arguments."""
        return ', '.join(f'{name}={value!r}' for name, value in self.options.items())


def _shared_levels(backbone: ResNetShared, plain: nn.Module, stage: int) -> Iterator[Level]:
    """Yield the options of a stage of a ResNet-Shared, first those without sharing."""
    if not backbone.is_basic:
        yield dict(share=None, share_first=False)
        for share, first in itertools.product(('single', 'double', 'all'), (False, True)):
            yield dict(share=share, share_first=first)
        return
    yield dict(shared_rank=0, unique_rank=0, share_first=False)
    width = backbone.base_channels * 2**stage
    for quarters, first in itertools.product((1, 2, 3, 4), (False, True)):
        rank = max(1, width * quarters // 4)
        yield dict(shared_rank=rank, unique_rank=max(1, rank // 16), share_first=first)


def _loop_levels(backbone: DRResNet, plain: nn.Module, stage: int) -> Iterator[Level]:
    """Yield the options of a stage of a DR-ResNet: loops that replace the blocks of the plain network."""
    blocks = getattr(plain, f'layer{stage + 1}', ())  # the network may end before this stage
    repeated = max(0, len(blocks) - 1)  # the first block of a stage runs once
    for loops in range(1, max(1, repeated) + 1):
        yield dict(blocks=1 + -(-repeated // loops), loops=loops)


#: Options of each stage by class of backbone.
_LEVELS: dict[type[Backbone], Callable[[Any, nn.Module, int], Iterator[Level]]] = {
    ResNetShared: _shared_levels,
    DRResNet: _loop_levels,
}


def check_keep(keep: float) -> None:
    """Raise a ToolError unless a budget is above 0 and at most 1."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise ToolError(f'--keep {keep!r}, allowed: a number above 0 and at most 1')


def choose_plan(
    teacher: nn.Module,
    make: Callable[[Mapping[str, Any]], Backbone],
    batches: Sequence[Tensor],
    keep: float,
) -> tuple[SharingPlan, list[SharingPlan]]:
    """Choose the options of each stage that do the least damage within a budget of parameters.

    Each option of each stage is tried alone: the teacher's weights are grafted with the images, and the
    errors of the outputs measured. The choice assumes that the squared errors of the stages add up.

    Args:
        teacher (nn.Module): The trained model, with a plain ``backbone``, in evaluation mode.
        make (Callable): Builds the new backbone with the given options, each with one value per stage.
        batches (Sequence[Tensor]): Preprocessed images, shape (N, C, H, W).
        keep (float): Budget as a share of the parameters of the teacher's backbone, above 0 and at most 1.

    Returns:
        tuple[SharingPlan, list[SharingPlan]]: The choice, and the best plan for each number of parameters,
        largest first.

    Raises:
        ToolError: If the class of the backbone has no options to choose from, or no plan fits the budget.
    """
    check_keep(keep)
    backbone = make({})
    levels = _levels_of(backbone, teacher.backbone)
    budget = keep * _num_parameters(teacher.backbone)
    plain = [stage[0] for stage in levels]
    whole = _num_parameters(make(_merge(plain)))
    saved: list[list[int]] = []
    damage: list[list[float]] = []
    for index, stage in enumerate(levels):
        saved.append([])
        damage.append([])
        for level in stage:
            candidate = make(_merge([*plain[:index], level, *plain[index + 1 :]]))
            saved[-1].append(whole - _num_parameters(candidate))
            is_plain = level is stage[0]
            damage[-1].append(0.0 if is_plain else _damage(teacher, candidate, batches))
    frontier = _frontier(levels, whole, saved, damage)
    fitting = [plan for plan in frontier if plan.parameters <= budget]
    if not fitting:
        least = frontier[-1].parameters / _num_parameters(teacher.backbone)
        raise ToolError(
            f"--keep {keep}: {type(backbone).__name__} has {least:.0%} of the parameters of the base's "
            f'backbone at least; allowed: --keep {least + 0.005:.2f} or more'
        )
    return fitting[0], frontier


def _levels_of(backbone: Backbone, plain: nn.Module) -> list[list[Level]]:
    for family, levels in _LEVELS.items():
        if isinstance(backbone, family):
            return [list(levels(backbone, plain, stage)) for stage in range(backbone.max_stages)]
    allowed = ', '.join(family.__name__ for family in _LEVELS)
    raise ToolError(f'--keep with {type(backbone).__name__}, allowed: a backbone of {allowed}')


def _merge(levels: Sequence[Level]) -> dict[str, tuple]:
    """Return one tuple for each option, with a value for each stage."""
    return {name: tuple(level[name] for level in levels) for name in levels[0]}


def _damage(teacher: nn.Module, candidate: Backbone, batches: Sequence[Tensor]) -> float:
    """Return the mean squared relative error of the outputs with a grafted candidate as backbone."""
    state, _ = graft(teacher.backbone.state_dict(), candidate, images=batches)
    candidate.load_state_dict(state)
    student = copy.copy(teacher)  # shares the neck
    student._modules = {**teacher._modules, 'backbone': candidate.to(batches[0].device)}
    student.eval()
    modules, outputs = choose_outputs(teacher, student, batches[0])
    readers = (OutputReader(model, modules) for model in (teacher, student))
    errors = relative_errors(*readers, outputs, batches)
    return sum(error**2 for error in errors.values()) / len(errors)


def _frontier(
    levels: Sequence[Sequence[Level]],
    whole: int,
    saved: Sequence[Sequence[int]],
    damage: Sequence[Sequence[float]],
) -> list[SharingPlan]:
    """Return the plans than which no smaller one does less damage, largest first."""
    found = []
    for choice in itertools.product(*(range(len(stage)) for stage in levels)):
        size = whole - sum(saved[stage][level] for stage, level in enumerate(choice))
        found.append((size, sum(damage[stage][level] for stage, level in enumerate(choice)), choice))
    plans: list[SharingPlan] = []
    least = float('inf')
    for size, total, choice in sorted(found):
        if total < least:
            least = total
            options = _merge([levels[stage][level] for stage, level in enumerate(choice)])
            plans.append(SharingPlan(options, size, total**0.5))
    return plans[::-1]


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
