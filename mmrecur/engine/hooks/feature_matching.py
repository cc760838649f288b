"""Feature maps of a trained teacher as an additional objective of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.checks import check_weight
from mmrecur.engine.configs import load_config
from mmrecur.engine.hooks.auxiliary_loss import add_losses, is_loss_pass
from mmrecur.errors import CheckpointError
from mmrecur.models.layers.common.modes import generators_kept
from mmrecur.models.losses.feature_matching import OutputRecorder, matching_error
from mmrecur.registry import HOOKS


@HOOKS.register_module()
class FeatureMatchingHook(Hook):
    r"""Train a model to compute the feature maps of a teacher, besides its losses with labels.

    Adds ``loss_match`` to the losses of the model and to the log:

    .. math:: L = \lambda \frac{1}{n} \sum_i \frac{\|s_i - t_i\|^2}{\|t_i\|^2}

    for the maps s_i of the model in training, the student, and the maps t_i of the teacher, a trained model
    such as the plain network of a swap. The teacher runs in evaluation mode without gradients, on exactly
    the inputs of the student's backbone, under the same autocast. The error is computed in float32. The
    teacher is no part of the student: it is not in checkpoints, and optimizers, wrappers and averages of the
    student's weights do not see it. A resumed training loads it again.

    Args:
        teacher (str or dict): Config file of the teacher, such as ``'faster-rcnn_r50.py'`` or
            ``'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``, or the config of its model.
        teacher_checkpoint (str): Its trained weights, a file or a URL. They must fit exactly.
        match (Sequence[str], optional): Names of the modules whose outputs are matched, in backbone or neck,
            such as ``['backbone.layer4', 'neck']``. Defaults to None: the backbone and, if there is one, the
            neck.
        loss_weight (float): Factor lambda. Defaults to 1.0.

    Raises:
        TypeError, ValueError: If an argument is wrong. When the training starts, also if the teacher
            normalises images in another way than the student; in the first step, if the numbers or the shapes
            of the maps differ.
        ToolError: If the config does not exist or cannot be read.
        FileNotFoundError: If the checkpoint does not exist.
        CheckpointError: If the checkpoint cannot be read or does not fit the teacher.

    Example:
        >>> custom_hooks = [  # in a config
        ...     dict(
        ...         type='mmrecur.FeatureMatchingHook',
        ...         teacher='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        ...         teacher_checkpoint='faster-rcnn.pth',
        ...     )
        ... ]
    """

    def __init__(
        self,
        teacher: str | dict,
        teacher_checkpoint: str,
        match: Sequence[str] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        check_weight('loss_weight', loss_weight)
        if not isinstance(teacher, (str, Mapping)):
            raise TypeError(f'teacher={teacher!r}, allowed: a config file, or the config of a model')
        if not isinstance(teacher_checkpoint, str):
            raise TypeError(f'teacher_checkpoint={teacher_checkpoint!r}, allowed: a file or a URL')
        if match is not None:
            match = [match] if isinstance(match, str) else list(dict.fromkeys(match))
            if not match or any(name.split('.')[0] not in ('backbone', 'neck') for name in match):
                raise ValueError(
                    f"match={match!r}, allowed: None, or names that start with 'backbone' or 'neck'"
                )
        self.teacher = teacher
        self.teacher_checkpoint = teacher_checkpoint
        self.match = match
        self.loss_weight = loss_weight
        self._matching: _Matching | None = None

    def before_train(self, runner: Runner) -> None:
        """Build the teacher and begin to match.

        Args:
            runner (Runner): The runner of the training.
        """
        self.after_train(runner)
        student = runner.model
        while is_model_wrapper(student):
            student = student.module
        with generators_kept():
            teacher = _build(self.teacher)
        _load(teacher, self.teacher_checkpoint)
        device = next(student.parameters()).device
        teacher.to(device).eval().requires_grad_(False)
        self._matching = _Matching(student, teacher, self.match, self.loss_weight)

    def after_train(self, runner: Runner) -> None:
        """Stop matching and drop the teacher.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._matching is not None:
            self._matching.remove()
            self._matching = None


class _Matching:
    """Forward hooks that compute the error of a student's maps in each of its training passes.

    Args:
        student (nn.Module): The model in training, not wrapped.
        teacher (nn.Module): The trained model.
        match (list[str], optional): See :class:`FeatureMatchingHook`.
        loss_weight (float): Factor of the error.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, match: list[str] | None, loss_weight: float
    ) -> None:
        for role, model in (('student', student), ('teacher', teacher)):
            if not isinstance(getattr(model, 'backbone', None), nn.Module):
                raise ValueError(
                    f'the {role}, a {type(model).__name__}, has no backbone; allowed: a model with one'
                )
        _check_preprocessing(student, teacher)
        if match is None:
            match = ['backbone'] + (['neck'] if getattr(student, 'neck', None) is not None else [])
        self.teacher = teacher
        self.loss_weight = loss_weight
        self.with_neck = any(name.split('.')[0] == 'neck' for name in match)
        self.recorders = OutputRecorder(student, match), OutputRecorder(teacher, match)
        self.handles = [
            student.register_forward_pre_hook(self.begin, with_kwargs=True),
            # before the student runs, which could change its input in place
            student.backbone.register_forward_pre_hook(self.run_teacher, with_kwargs=True),
            student.register_forward_hook(self.finish, with_kwargs=True),
        ]

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the following pass if it computes losses. Recomputed activations are not recorded."""
        for recorder in self.recorders:
            recorder.clear()
            recorder.active = model.training and is_loss_pass(model, args, kwargs)

    @torch.no_grad()
    def run_teacher(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the teacher on the input of the student's backbone."""
        if self.recorders[1].active:
            maps = self.teacher.backbone(*args, **kwargs)
            if self.with_neck:
                self.teacher.neck(maps)

    def finish(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any] | None:
        """Add the error to the losses of the pass."""
        if not self.recorders[0].active or not isinstance(output, dict):
            return None
        error = matching_error(*(recorder.outputs() for recorder in self.recorders))
        for recorder in self.recorders:
            recorder.clear()
        return add_losses(model, output, dict(loss_match=self.loss_weight * error))

    def remove(self) -> None:
        """Detach everything from the student."""
        for part in (*self.handles, *self.recorders):
            part.remove()


def _build(teacher: str | dict) -> nn.Module:
    """Build the teacher with random weights; nothing is downloaded."""
    if not isinstance(teacher, str):
        return revert_sync_batchnorm(MODELS.build(ConfigDict(teacher)))
    cfg = load_config(teacher)
    if cfg.get('model') is None:
        raise ValueError(f'teacher={teacher!r} has no model, allowed: the config of a training')
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def _load(teacher: nn.Module, source: str) -> None:
    state = unwrap(load_checkpoint(source))
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f'teacher_checkpoint={source!r} does not fit the teacher: {error}') from error


def _check_preprocessing(student: nn.Module, teacher: nn.Module) -> None:
    """Raise a ValueError if the two models are known to normalise images in different ways."""
    ours, theirs = (getattr(model, 'data_preprocessor', None) for model in (student, teacher))
    for name in ('mean', 'std', '_channel_conversion', 'to_rgb'):
        values = [getattr(each, name, None) for each in (ours, theirs)]
        if any(value is None for value in values):
            continue
        pair = [torch.as_tensor(value, dtype=torch.float32).flatten().tolist() for value in values]
        if pair[0] != pair[1]:
            raise ValueError(
                f'{name} of the data preprocessor is {pair[0]} in the student and {pair[1]} in the teacher, '
                'allowed: the same'
            )
