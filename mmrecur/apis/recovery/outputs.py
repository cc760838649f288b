"""Choose the outputs of two models that a recovery compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mmrecur.models.losses.feature_matching import OutputRecorder, named_maps
from mmrecur.models.norms import run_backbone_and_neck

#: A batch: images of one size, or groups of images of different sizes.
Batch: TypeAlias = 'Tensor | Sequence[Tensor]'
_STAGE = re.compile(r'layer\d+')


def groups_of(batch: Batch) -> list[Tensor]:
    """Return the groups of images of a batch, each of one size.

    Args:
        batch (Tensor or Sequence[Tensor]): Images, shape (N, C, H, W).

    Returns:
        list[Tensor]: One tensor for each size.

    Raises:
        TypeError: If ``batch`` is something else.
    """
    groups = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(groups, (list, tuple)) or not groups or not all(isinstance(g, Tensor) for g in groups):
        raise TypeError(
            f'batches yields a {type(batch).__name__}, allowed: a tensor of shape (N, C, H, W), or a list of '
            'such tensors'
        )
    if wrong := [tuple(group.shape) for group in groups if group.dim() != 4 or not len(group)]:
        raise TypeError(f'batches yields a tensor of shape {wrong[0]}, allowed: (N, C, H, W)')
    if raw := [group.dtype for group in groups if not group.is_floating_point()]:
        raise TypeError(f'batches yields a tensor of {raw[0]}, allowed: normalised images, such as float32')
    return list(groups)


class OutputReader:
    """Run a model up to its neck and return outputs of its submodules.

    Args:
        model (nn.Module): A model with a backbone, or another network, which is run as a whole.
        names (Sequence[str]): Names of the submodules; the empty name stands for the model.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.names = model, names

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Run the model.

        Args:
            x (Tensor): Preprocessed images, shape (N, C, H, W). They are moved to the device and dtype of
                the model.

        Returns:
            dict[str, Tensor]: Outputs by the name of the submodule and, if it returns several, their
            index: ``'neck.0'``.
        """
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), x)
        recorder = OutputRecorder(self.model, self.names)
        recorder.active = True
        try:
            run_backbone_and_neck(self.model, x.to(parameter))
            return named_maps(recorder.outputs())
        finally:
            recorder.remove()


def common_modules(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Return the names of the submodules whose outputs are matched by default.

    These are the stages that both networks have under the same name, the backbones, and the necks.

    Args:
        teacher (nn.Module): The teacher.
        student (nn.Module): The student.

    Returns:
        list[str]: The names, in the order of execution.

    Raises:
        ValueError: If only one of both has a backbone.
    """
    if hasattr(teacher, 'backbone') != hasattr(student, 'backbone'):
        one, other = ('teacher', 'student') if hasattr(teacher, 'backbone') else ('student', 'teacher')
        raise ValueError(
            f'{one} has a backbone and {other} has none; allowed: two models with a backbone, or two '
            'networks without'
        )
    if not hasattr(student, 'backbone'):
        return [*_stages(teacher, student), '']
    stages = [f'backbone.{name}' for name in _stages(teacher.backbone, student.backbone)]
    has_necks = all(getattr(model, 'neck', None) is not None for model in (teacher, student))
    return [*stages, 'backbone', *(['neck'] if has_necks else [])]


def _stages(teacher: nn.Module, student: nn.Module) -> list[str]:
    return [n for n, _ in student.named_children() if _STAGE.fullmatch(n) and hasattr(teacher, n)]


@torch.no_grad()
def choose_outputs(
    teacher: nn.Module, student: nn.Module, x: Tensor, match: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Choose the outputs that are matched.

    Args:
        teacher (nn.Module): The teacher, in evaluation mode.
        student (nn.Module): The student, in evaluation mode.
        x (Tensor): Preprocessed images, shape (N, C, H, W).
        match (Sequence[str], optional): Names of submodules, whose outputs must all match. Defaults to None:
            :func:`common_modules`, without outputs that have other shapes in the teacher.

    Returns:
        tuple[list[str], list[str]]: Names of the submodules, and names of their outputs that are matched.
        A tensor that several submodules return, such as the backbone and its last stage, counts once.

    Raises:
        TypeError: If ``match`` is not a sequence of names.
        ValueError: If the outputs do not match, or those of the teacher are not finite.
    """
    if match is not None and (isinstance(match, str) or not match):
        raise TypeError(f"match={match!r}, allowed: None, or names such as ['backbone', 'neck']")
    modules = common_modules(teacher, student) if match is None else list(match)
    targets, outputs = (OutputReader(model, modules)(x) for model in (teacher, student))
    for name in modules if match is not None else ():
        if not any(output == name or output.startswith(f'{name}.') or not name for output in outputs):
            raise ValueError(
                f'match={list(match or ())}: module {name!r} does not run in the backbone or the neck, '
                'allowed: one that does'
            )
    chosen: list[str] = []
    seen: set[int] = set()
    for name, output in outputs.items():
        target = targets.get(name)
        if target is not None and target.shape == output.shape:
            if not target.isfinite().all():
                raise ValueError(
                    f'output {name!r} of the teacher has values that are not finite, allowed: images and '
                    'weights with finite outputs'
                )
            if output.data_ptr() not in seen:
                chosen.append(name)
                seen.add(output.data_ptr())
        elif match is not None:
            theirs = 'lacks it' if target is None else f'has the shape {tuple(target.shape)}'
            raise ValueError(
                f'output {name!r} has the shape {tuple(output.shape)} in the student; the teacher '
                f'{theirs}. Allowed: the same shape'
            )
    if not chosen:
        raise ValueError(
            f'the outputs of {", ".join(map(repr, modules))} have other shapes in the student than in the '
            'teacher, allowed: at least one of the same shape'
        )
    return modules, chosen


@torch.no_grad()
def relative_errors(
    teacher: OutputReader, student: OutputReader, outputs: Sequence[str], images: Sequence[Tensor]
) -> dict[str, float]:
    """Return the relative error ``||s - t|| / ||t||`` of each output over all images.

    Args:
        teacher (OutputReader): Reads the teacher, in evaluation mode.
        student (OutputReader): Reads the student, in evaluation mode.
        outputs (Sequence[str]): Names of the outputs.
        images (Sequence[Tensor]): Preprocessed images, each of shape (N, C, H, W).

    Returns:
        dict[str, float]: Error by the name of the output.
    """
    off, whole = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    for x in images:
        targets, features = teacher(x), student(x)
        for name in outputs:
            target = targets[name].to(features[name].device)
            off[name] += (features[name] - target).double().square().sum().item()
            whole[name] += target.double().square().sum().item()
    return {name: (off[name] / max(whole[name], 1e-30)) ** 0.5 for name in outputs}
