"""Try a planned swap: build both models, graft a checkpoint, and train one step."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmrecur.apis.demo_inputs import demo_inputs
from mmrecur.apis.swap.features import feature_maps, largest_difference, probe, randomize_norms
from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.target import find_target
from mmrecur.checkpoint import (
    Report,
    graft,
)
from mmrecur.checkpoint.grafts.other_parts import graft_other_parts
from mmrecur.checkpoint.unwrap import below, unwrap
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError, TransferError


@dataclass(frozen=True)
class Grafted:
    """A grafted checkpoint of the base's model.

    Attributes:
        state (dict[str, Tensor]): State dict of the new model.
        report (Report): What became of each tensor.
        difference (float): Largest relative difference between the features of the old and new backbone;
            infinite if the new one starts from random weights.
        notes (tuple[str, ...]): Notes for the user.
    """

    state: dict[str, Tensor] = field(repr=False)
    report: Report = field(repr=False)
    difference: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        losses (dict[str, float]): Losses by name.
        gradients (int): Number of parameters of the backbone that received a gradient.
    """

    losses: dict[str, float]
    gradients: int


@dataclass(frozen=True)
class Trial:
    """Results of a tried swap.

    Attributes:
        parameters (tuple[int, int]): Parameters of the old and the new model.
        backbone_parameters (tuple[int, int]): Parameters of the old and the new backbone.
        grafted (Grafted, optional): The grafted checkpoint, if one was given.
        step (Step, optional): The training step; None if none was tried.
        skipped (str, optional): Why no step was tried although inputs can be made up for the model.
    """

    parameters: tuple[int, int]
    backbone_parameters: tuple[int, int]
    grafted: Grafted | None = None
    step: Step | None = None
    skipped: str | None = None


def try_swap(
    swap: Swap, shape: tuple[int, int] | None = None, checkpoint: Mapping[str, Any] | None = None
) -> Trial:
    """Build the old and the new model, graft a checkpoint if one is given, and train one step.

    Args:
        swap (Swap): A planned swap, see :func:`mmrecur.apis.swap.plan_swap`.
        shape (tuple[int, int], optional): Height and width of the training images. None uses the size that
            the model prescribes; otherwise 128 by 128, or 256 by 256 if the model fails on these.
            Defaults to None.
        checkpoint (Mapping, optional): A checkpoint of the base's model. Defaults to None.

    Returns:
        Trial: The results. No step is tried if the base's model cannot be trained on made-up images either.

    Raises:
        ToolError: If the new model cannot be built or trained, or if the checkpoint does not fit.
    """
    with own_randomness():
        return _try(swap, shape, checkpoint)


def _try(swap: Swap, shape: tuple[int, int] | None, checkpoint: Mapping[str, Any] | None) -> Trial:
    old, new = swap.target.build(), find_target(swap.config, swap.target.name).build()
    channels = getattr(new.backbone, 'in_channels', 3)
    image, _ = probe(old.backbone, channels)
    parameters = _num_parameters(old), _num_parameters(new)
    backbone_parameters = _num_parameters(old.backbone), _num_parameters(new.backbone)
    grafted = None
    if checkpoint is None:
        with _quiet():
            new.init_weights()
        randomize_norms(new.backbone, image)
    else:
        grafted = _graft(swap, old, new, checkpoint, image)
    _check_optimizer(swap, new)
    step, skipped = _train_step(old, new, [(shape[0], shape[1])] if shape else _usual_shapes(swap), channels)
    return Trial(parameters, backbone_parameters, grafted, step, skipped)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MMEngine from logging each parameter that it initializes or optimizes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def graft_checkpoint(
    swap: Swap,
    new: nn.Module,
    checkpoint: Mapping[str, Any],
    images: Sequence[Tensor] | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Graft a checkpoint of the base's model into the new model.

    A backbone that starts from random weights is initialised and keeps them.

    Args:
        swap (Swap): The swap.
        new (nn.Module): The new model.
        checkpoint (Mapping): The checkpoint.
        images (Sequence[Tensor], optional): Preprocessed images to fit to, see :func:`graft`. Defaults to
            None.

    Returns:
        tuple[dict[str, Tensor], Report]: State dict of the new model, and the report on every key.

    Raises:
        ToolError: If the checkpoint does not fit.
    """
    part = _part_of_target(checkpoint, swap)[0]
    try:
        if swap.start.kind == 'random':
            with _quiet():
                new.backbone.init_weights()
            return graft_other_parts(part, new)
        return graft(part, new, images=images)
    except (TransferError, ValueError) as error:
        raise ToolError(
            f'the checkpoint cannot be grafted: {error}. Without a graft, tools/swap_backbone.py --init none '
            '--recover IMAGES trains a random backbone to compute the feature maps of the old one'
        ) from error


def _graft(
    swap: Swap, old: nn.Module, new: nn.Module, checkpoint: Mapping[str, Any], image: Tensor
) -> Grafted:
    """Load a checkpoint into the old model, graft it into the new one, and compare both."""
    load_base(swap, old, checkpoint)
    state, report = graft_checkpoint(swap, new, checkpoint)
    new.load_state_dict(state)
    difference = float('inf')
    if swap.start.kind != 'random':  # whose maps may have other widths
        difference = largest_difference(
            feature_maps(old.backbone, image, "the base's backbone"),
            feature_maps(new.backbone, image, 'the new backbone'),
        )
    return Grafted(state, report, difference, _part_of_target(checkpoint, swap)[1])


def _part_of_target(checkpoint: Mapping[str, Any], swap: Swap) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the target's part of a checkpoint of the whole model, such as a tracker, and notes."""
    if not swap.target.is_nested:
        return checkpoint, ()
    prefix = f'{swap.target.name.removeprefix("model.")}.'
    state = unwrap(checkpoint)
    inside = below(state, prefix)
    if not inside:
        return checkpoint, ()
    rest = dict.fromkeys(key.split('.', 1)[0] for key in state if not key.startswith(prefix))
    notes = (f'of the checkpoint only {prefix[:-1]} is grafted, not {", ".join(rest)}',) if rest else ()
    return {'state_dict': inside}, notes


def load_base(swap: Swap, model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load a checkpoint into the base's model.

    Args:
        swap (Swap): The swap.
        model (nn.Module): The base's model, see :meth:`Target.build`. It is changed in place.
        checkpoint (Mapping): The checkpoint.

    Raises:
        ToolError: If the checkpoint does not match the model.
    """
    try:
        state = unwrap(_part_of_target(checkpoint, swap)[0])
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, TransferError) as error:
        raise ToolError(f"the checkpoint does not match the base's model: {error}") from error
    missing = [key for key in result.missing_keys if not key.endswith('num_batches_tracked')]
    for problem, keys in (('lacks', missing), ('also has', result.unexpected_keys)):
        if keys:
            more = f' and {len(keys) - 4} more' if len(keys) > 4 else ''
            raise ToolError(
                f"the checkpoint does not match the base's model: it {problem} {', '.join(keys[:4])}{more}"
            )


def _check_optimizer(swap: Swap, model: nn.Module) -> None:
    """Build the optimizer, because some optimizer constructors support certain backbones only."""
    cfg = swap.config.get('optim_wrapper')
    if cfg is None or swap.target.is_nested:
        return
    cfg = {k: v for k, v in cfg.items() if k not in ('loss_scale', 'dtype', 'use_fp16')}
    cfg['type'] = 'OptimWrapper'  # MMEngine's wrapper for mixed precision needs a GPU
    try:
        with _quiet(), DefaultScope.overwrite_default_scope(swap.target.scope):
            build_optim_wrapper(model, cfg)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f"the base's optim_wrapper cannot be built for the new backbone: {reason}") from error


def _usual_shapes(swap: Swap) -> list[tuple[int, int]]:
    """Return image sizes to try: the one that a head such as SSD's prescribes, or two usual ones."""
    head = swap.target.model.get('bbox_head')
    generator = head.get('anchor_generator') if isinstance(head, Mapping) else None
    size = (generator or {}).get('input_size')
    return [(size, size)] if isinstance(size, int) else [(128, 128), (256, 256)]


def _train_step(
    old: nn.Module, new: nn.Module, shapes: list[tuple[int, int]], channels: int
) -> tuple[Step | None, str | None]:
    """Train the new model for a step; if it fails, return why the step is skipped, or raise.

    The failure is the new backbone's only if the old model can be trained on the same images.
    """
    if demo_inputs(new, shapes[0], channels=channels) is None:
        return None, None
    try:
        return _first_step(new, shapes, channels, _checked_step), None
    except ToolError:
        try:
            _first_step(old, shapes, channels, _losses)
        except ToolError as reason:
            return None, f'The base itself fails on made-up images: {reason}'
        raise


def _first_step(model: nn.Module, shapes: list[tuple[int, int]], channels: int, step: Any) -> Any:
    """Return the result of a step on the first size that works; some models need larger maps."""
    for shape in shapes:
        model.zero_grad()
        try:
            return step(model, demo_inputs(model, shape, channels=channels))
        except ToolError:
            if shape == shapes[-1]:
                raise
    return None


@contextlib.contextmanager
def _as_in_a_run() -> Iterator[None]:
    """Publish the training progress on MMEngine's message hub, where some models read it."""
    hub = MessageHub.get_current_instance()
    progress = {'epoch': 0, 'iter': 0, 'max_epochs': 1, 'max_iters': 1}
    progress = {name: value for name, value in progress.items() if name not in hub.runtime_info}
    for name, value in progress.items():
        hub.update_info(name, value)
    try:
        yield
    finally:
        for name in progress:
            hub.pop_info(name)


def _losses(model: nn.Module, data: dict[str, Any]) -> dict[str, float]:
    """Run one forward and backward pass and return the losses."""
    height, width = data['inputs'][0].shape[-2:]
    for module in model.modules():
        if getattr(module, 'use_torchvision', False):
            # Without its compiled operators, torchvision's RoI Align needs about 100 GB of memory.
            module.use_torchvision = False
    if getattr(model.data_preprocessor, 'batch_augments', None):
        model.data_preprocessor.batch_augments = None  # may resize the images to the usual training size
    model.train()
    try:
        with torch.enable_grad(), _as_in_a_run():
            data = model.data_preprocessor(data, training=True)
            loss, logs = model.parse_losses(model(**data, mode='loss'))
            loss.backward()
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f'a training step on images of {height}x{width} fails: {reason}') from error
    return {name: float(value.detach()) for name, value in logs.items()}


def _checked_step(model: nn.Module, data: dict[str, Any]) -> Step:
    """Train a step; raise unless the losses and the gradients of the whole backbone are finite."""
    losses = _losses(model, data)
    wrong = [name for name, value in losses.items() if not math.isfinite(value)]
    if wrong:
        raise ToolError(f'a training step gives losses that are not finite: {", ".join(wrong)}')
    parameters = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    left = [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    if left:
        raise ToolError(f'a training step gives no finite gradient to {len(left)} parameters: {left[:4]}')
    return Step(losses, len(parameters))
