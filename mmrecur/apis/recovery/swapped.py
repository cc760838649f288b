"""Recover a model whose backbone has been swapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from torch import Tensor, nn

from mmrecur.analysis.complexity import count_work, image_inputs
from mmrecur.apis.recovery.budget import SharingPlan, check_keep, choose_plan
from mmrecur.apis.recovery.images import RecoveryImages
from mmrecur.apis.recovery.progress import RecoveryProgress
from mmrecur.apis.recovery.recover import check_recovery, first_images, recover
from mmrecur.apis.recovery.report import RecoveryReport
from mmrecur.apis.recovery.validation import Validation
from mmrecur.apis.swap.features import build
from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.target import find_target
from mmrecur.apis.swap.trial import graft_checkpoint, load_base
from mmrecur.checkpoint import Report
from mmrecur.checks import check_int
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError

#: Number of images to which the weights of the new backbone are fitted before the first step.
FIT_IMAGES = 64


#: Parameters of the backbone, parameters of the model, multiply-adds.
Sizes = tuple[int, int, int | None]


@dataclass(frozen=True)
class RecoverySettings:
    """Settings of the recovery of a swapped model.

    Attributes:
        images (str): Source of the images, see :class:`RecoveryImages`.
        steps (int): Number of steps.
        batch_size (int): Number of images in a step.
        lr (float, optional): Highest learning rate, see :func:`recover`.
        num_images (int, optional): Number of images to use; None for all.
        keep (float, optional): Largest number of parameters of the new backbone, as a share of the old one's;
            see :func:`choose_plan`.
        validate (bool): Whether the teacher and the student after each stage are validated.
        seed (int): Seed of the order of images and of the noise in the student.

    Raises:
        ValueError: If a number is not allowed.
    """

    images: str
    steps: int = 2000
    batch_size: int = 8
    lr: float | None = None
    num_images: int | None = None
    keep: float | None = None
    validate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_recovery(self.steps, self.lr, self.seed)
        check_int('batch_size', self.batch_size, 1)
        if self.num_images is not None:
            check_int('num_images', self.num_images, self.batch_size)
        if self.keep is not None:
            check_keep(self.keep)


@dataclass(frozen=True)
class Recovered:
    """A recovered model.

    Attributes:
        state (dict[str, Tensor]): State dict of the student.
        grafted (Report): Report on the graft that the student started from.
        report (RecoveryReport): Report on the recovery.
        teacher_metrics (dict[str, float]): Metrics of the teacher, if it was validated.
        skipped (dict[str, str]): Reason by the name of each image that could not be read.
        sizes (tuple): For the teacher and the student, the number of parameters of the backbone and of the
            model, and the multiply-adds of an image of the first batch; None if they cannot be counted.
    """

    state: dict[str, Tensor] = field(repr=False)
    grafted: Report = field(repr=False)
    report: RecoveryReport = field(repr=False)
    teacher_metrics: dict[str, float]
    skipped: dict[str, str]
    sizes: tuple[Sizes, Sizes]


@dataclass(frozen=True)
class ChosenPlan:
    """A plan chosen under a budget of parameters.

    Attributes:
        backbone (dict): Config of the new backbone with the options of the plan.
        plan (SharingPlan): The plan.
        frontier (list[SharingPlan]): The best plan for each number of parameters, largest first.
        old_parameters (int): Parameters of the replaced backbone.
    """

    backbone: dict[str, Any]
    plan: SharingPlan
    frontier: list[SharingPlan]
    old_parameters: int


def choose_swap_plan(swap: Swap, checkpoint: Mapping[str, Any], settings: RecoverySettings) -> ChosenPlan:
    """Choose what each stage of the new backbone shares so that it keeps to ``settings.keep``.

    Args:
        swap (Swap): A swap for a backbone of the wanted class.
        checkpoint (Mapping): Trained checkpoint of the base's model.
        settings (RecoverySettings): The settings.

    Returns:
        ChosenPlan: The plan.

    Raises:
        ToolError: If no plan fits the budget, or the class of the backbone has no options to choose from.
    """
    with own_randomness(settings.seed):
        teacher = swap.target.build().eval()
        load_base(swap, teacher, checkpoint)
        images = _images(swap, teacher, settings)
        options = find_target(swap.config, swap.target.name).backbone

        def with_options(plan: Mapping[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in dict(options).items() if name != 'init_cfg'}
            return kept | dict(plan) | ({'depth': None} if 'loops' in plan else {})

        def make(plan: Mapping[str, Any]) -> nn.Module:
            return build(with_options(plan), swap.target.scope, 'the new backbone')

        batches = first_images(islice(images.batches(), -(-FIT_IMAGES // settings.batch_size)))
        plan, frontier = choose_plan(teacher, make, batches, settings.keep)
    old = sum(parameter.numel() for parameter in teacher.backbone.parameters())
    return ChosenPlan(with_options(plan.options), plan, frontier, old)


def recover_swap(
    swap: Swap,
    checkpoint: Mapping[str, Any],
    settings: RecoverySettings,
    state_file: Path | None = None,
) -> Recovered:
    """Graft a trained model into the model of a swap, and recover its accuracy on unlabelled images.

    Args:
        swap (Swap): The swap.
        checkpoint (Mapping): Trained checkpoint of the base's model.
        settings (RecoverySettings): The settings.
        state_file (Path, optional): See ``checkpoint`` of :func:`recover`. Defaults to None.

    Returns:
        Recovered: The recovered model and its reports.

    Raises:
        ToolError: If the checkpoint or the images do not fit, or if a step diverges.
    """
    if settings.validate and swap.target.is_nested:
        raise ToolError(
            f'--val with a backbone in {swap.target.name}, allowed: a backbone of the whole model, which the '
            "config's metrics belong to"
        )
    device = get_device()
    if device == 'mps':  # lacks the double precision of the statistics
        device = 'cpu'
    with own_randomness(settings.seed):
        teacher, student = swap.target.build(), find_target(swap.config, swap.target.name).build()
        load_base(swap, teacher, checkpoint)
        teacher.to(device)
        validation = Validation(swap.base) if settings.validate else None
        images = _images(swap, teacher, settings)
        fit_images = first_images(islice(images.batches(), -(-FIT_IMAGES // settings.batch_size)))
        state, grafted = graft_checkpoint(swap, student, checkpoint, [x.cpu() for x in fit_images])
        student.load_state_dict(state)
        student.to(device)
        teacher_metrics = validation(teacher) if validation else {}
        with RecoveryProgress(settings.steps) as progress:
            try:
                report = recover(
                    teacher,
                    student,
                    images,
                    steps=settings.steps,
                    lr=settings.lr,
                    callback=progress,
                    evaluate=validation,
                    checkpoint=state_file,
                    seed=settings.seed,
                )
            except FloatingPointError as error:
                raise ToolError(str(error)) from error
        sizes = (_sizes(teacher, fit_images[0]), _sizes(student, fit_images[0]))
    state = {name: tensor.cpu() for name, tensor in student.state_dict().items()}
    return Recovered(state, grafted, report, teacher_metrics, dict(images.skipped), sizes)


def _sizes(model: nn.Module, images: Tensor) -> Sizes:
    shape = images.shape[1:]
    try:
        x, arguments = image_inputs(model, shape[1:], shape[0])
        work = count_work(model, x.to(next(model.parameters())), arguments)['']
    except Exception:  # heads that do not run on made-up inputs
        work = None
    return *(sum(p.numel() for p in module.parameters()) for module in (model.backbone, model)), work


def _images(swap: Swap, model: nn.Module, settings: RecoverySettings) -> RecoveryImages:
    return RecoveryImages(
        swap.base, settings.images, model, settings.batch_size, settings.num_images, settings.seed
    )
