"""A swapped config tried out: built, compared with the base, trained for a step."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmrecur.analysis.complexity import count_parameters
from mmrecur.apis.demo_inputs import demo_inputs
from mmrecur.apis.randomness import own_randomness
from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.stages import probe
from mmrecur.apis.swap.target import find_target, outputs
from mmrecur.apis.swap.weights import largest_difference, randomize_norms
from mmrecur.checkpoint import Report, graft
from mmrecur.checkpoint.unwrap import below, unwrap
from mmrecur.errors import ToolError, TransferError


@dataclass
class Trial:
    """What was seen of a swapped model.

    Attributes:
        parameters (tuple[int, int]): Of the model before and now.
        backbone_parameters (tuple[int, int]): Of the backbone before and now.
        losses (dict[str, float], optional): Of one training step; None if no inputs could be made.
        gradients (int): Parameters of the backbone that got a gradient in it.
        state (dict, optional): The grafted checkpoint.
        report (Report, optional): What became of every tensor in it.
        difference (float, optional): Largest relative difference of the features before and now.
        note (str, optional): Why no training step was tried, if the base's model is to blame.
    """

    parameters: tuple[int, int] = (0, 0)
    backbone_parameters: tuple[int, int] = (0, 0)
    losses: dict[str, float] | None = None
    gradients: int = 0
    state: dict[str, Tensor] | None = field(default=None, repr=False)
    report: Report | None = field(default=None, repr=False)
    difference: float | None = None
    note: str | None = None


def try_swap(
    swap: Swap, shape: tuple[int, int] | None = None, checkpoint: Mapping[str, Any] | None = None
) -> Trial:
    """Build the base's model and the new one, graft a checkpoint if there is one, and train a step.

    Args:
        swap (Swap): See :func:`mmrecur.apis.swap.plan_swap`.
        shape (tuple[int, int], optional): Height and width of the images to train on. None is what the
            model is made for, or 128 by 128, or 256 by 256 where these are too small. Defaults to None.
        checkpoint (Mapping, optional): A checkpoint of the base's model. Defaults to None.

    Returns:
        Trial: What was seen.

    Raises:
        ToolError: If the model cannot be built or trained or the checkpoint does not fit. A model whose base
            cannot be trained on made-up images either is left untried.
    """
    with own_randomness():
        return _try(swap, shape, checkpoint)


def _try(swap: Swap, shape: tuple[int, int] | None, checkpoint: Mapping[str, Any] | None) -> Trial:
    old, new = find_target(swap.base, swap.host.path).build(), swap.host.build()
    channels = getattr(new.backbone, 'in_channels', 3)
    image, _ = probe(old.backbone, channels)
    trial = Trial(
        parameters=(count_parameters(old)[0], count_parameters(new)[0]),
        backbone_parameters=(count_parameters(old.backbone)[0], count_parameters(new.backbone)[0]),
    )
    if checkpoint is None:
        with _quiet():
            new.init_weights()
        randomize_norms(new.backbone, image)
    else:
        checkpoint = _of_host(checkpoint, swap)
        _load_base(old, checkpoint)
        try:
            trial.state, trial.report = graft(checkpoint, new)
        except (TransferError, ValueError) as error:
            raise ToolError(f'the checkpoint cannot be grafted: {error}') from error
        new.load_state_dict(trial.state)
        trial.difference = largest_difference(
            outputs(old.backbone, image, "the base's backbone"),
            outputs(new.backbone, image, 'the new backbone'),
        )
    _check_optimizer(swap, new)
    shapes = [tuple(shape)] if shape else _usual_shapes(swap)
    if demo_inputs(new, shapes[0], channels=channels) is None:
        return trial
    error = _first_step(new, shapes, channels, trial)
    if error is None:
        return trial
    reason = _first_step(old, shapes, channels)
    if reason is None:
        raise error
    trial.note = f'The base itself fails on made-up images: {reason}'
    return trial


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MMEngine from logging every parameter that it initialises or optimizes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _of_host(checkpoint: Mapping[str, Any], swap: Swap) -> Mapping[str, Any]:
    """Of the checkpoint of a whole model, such as a tracker, the part that has the backbone."""
    if not swap.host.is_nested:
        return checkpoint
    prefix = f'{swap.host.path.removeprefix("model.")}.'
    state = unwrap(checkpoint)
    inside = below(state, prefix)
    if not inside:
        return checkpoint
    rest = dict.fromkeys(key.split('.', 1)[0] for key in state if not key.startswith(prefix))
    if rest:
        swap.notes.append(f'of the checkpoint only {prefix[:-1]} is grafted, not {", ".join(rest)}')
    return {'state_dict': inside}


def _load_base(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load the base's checkpoint, or say how it is none."""
    try:
        result = model.load_state_dict(unwrap(checkpoint), strict=False)
    except (RuntimeError, TransferError) as error:
        raise ToolError(f'the checkpoint is none of the base: {error}') from error
    missing = [key for key in result.missing_keys if not key.endswith('num_batches_tracked')]
    for what, keys in (('lacks', missing), ('has also', result.unexpected_keys)):
        if keys:
            more = f' and {len(keys) - 4} more' if len(keys) > 4 else ''
            raise ToolError(f'the checkpoint is none of the base: it {what} {", ".join(keys[:4])}{more}')


def _check_optimizer(swap: Swap, model: nn.Module) -> None:
    """Build the optimizer: some constructors know certain backbones only."""
    cfg = swap.config.get('optim_wrapper')
    if cfg is None or swap.host.is_nested:
        return
    cfg = {k: v for k, v in cfg.items() if k not in ('loss_scale', 'dtype', 'use_fp16')}
    cfg['type'] = 'OptimWrapper'  # mixed precision wants a GPU
    try:
        with _quiet(), DefaultScope.overwrite_default_scope(swap.host.scope):
            build_optim_wrapper(model, cfg)
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f"the base's optim_wrapper cannot be built for the new backbone: {reason}") from error


def _usual_shapes(swap: Swap) -> list[tuple[int, int]]:
    """Sizes of images to try: those that a head is made for, as SSD's is, or small ones and larger ones."""
    head = swap.host.model.get('bbox_head')
    generator = head.get('anchor_generator') if isinstance(head, Mapping) else None
    size = (generator or {}).get('input_size')
    return [(size, size)] if isinstance(size, int) else [(128, 128), (256, 256)]


def _first_step(
    model: nn.Module, shapes: list[tuple[int, int]], channels: int, trial: Trial | None = None
) -> ToolError | None:
    """Train a step on the first size of images on which it works; the last error if there is none."""
    error = None
    for shape in shapes:  # a model that picks hundreds of places from its maps needs as many
        model.zero_grad()
        try:
            losses = _step(model, demo_inputs(model, shape, channels=channels))
            if trial is not None:
                _check_step(model, losses, trial)
            return None
        except ToolError as failed:
            error = failed
    return error


@contextlib.contextmanager
def _as_in_a_run() -> Iterator[None]:
    """Tell models what the runner tells those whom it concerns."""
    hub = MessageHub.get_current_instance()
    told = {'epoch': 0, 'iter': 0, 'max_epochs': 1, 'max_iters': 1}
    told = {name: value for name, value in told.items() if name not in hub.runtime_info}
    for name, value in told.items():
        hub.update_info(name, value)
    try:
        yield
    finally:
        for name in told:
            hub.pop_info(name)


def _step(model: nn.Module, data: dict[str, Any]) -> dict[str, float]:
    """One forward and backward pass; the losses."""
    height, width = data['inputs'][0].shape[-2:]
    for module in model.modules():
        if getattr(module, 'use_torchvision', False):
            # without its compiled operators torchvision gathers regions in Python, in a hundred gigabytes
            module.use_torchvision = False
    if getattr(model.data_preprocessor, 'batch_augments', None):
        model.data_preprocessor.batch_augments = None  # which may enlarge the images to their usual size
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


def _check_step(model: nn.Module, losses: dict[str, float], trial: Trial) -> None:
    """Losses have to be finite, and every parameter of the backbone has to take part."""
    trial.losses = losses
    wrong = [name for name, value in trial.losses.items() if not math.isfinite(value)]
    if wrong:
        raise ToolError(f'a training step gives losses that are not finite: {", ".join(wrong)}')
    parameters = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    left = [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    if left:
        raise ToolError(f'a training step gives no finite gradient to {len(left)} parameters: {left[:4]}')
    trial.gradients = len(parameters)
