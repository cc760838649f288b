"""Objectives of modules inside a model, added to its losses."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmrecur.registry import HOOKS


@HOOKS.register_module()
class AuxiliaryLossHook(Hook):
    """Collect the objectives that modules of a model have of their own.

    A module takes part by a method ``auxiliary_losses() -> dict[str, Tensor]`` whose names start with
    ``loss_``. What the modules in training mode return is merged into the dict that the model returns for
    ``mode='loss'``; it is part of the loss and of the log from there on, in any detector or classifier,
    whatever wraps the model. Modules that give the same name are added up. The losses are computed in
    float32, outside autocast.

    Example:
        >>> custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]  # in a config
    """

    def __init__(self) -> None:
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin to collect.

        Args:
            runner (Runner): The runner of the training.
        """
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        self.after_train(runner)
        self._handle = model.register_forward_hook(merge_auxiliary_losses, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Stop collecting.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def collect_auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Compute the objectives of a model's modules.

    Args:
        model (nn.Module): Any module.

    Returns:
        dict[str, Tensor]: Scalars in float32 by name; those of the same name are added up. Modules in
        evaluation mode (a teacher, a deployed backbone) are left out.

    Raises:
        ValueError: If a name does not start with ``loss_``.
    """
    collected: dict[str, Tensor] = {}
    for module in model.modules():
        if not module.training or not hasattr(module, 'auxiliary_losses'):
            continue
        device = next((p.device.type for p in module.parameters()), 'cpu')
        with torch.autocast(device, enabled=False):
            losses = module.auxiliary_losses()
        for name, value in losses.items():
            if not name.startswith('loss_'):
                raise ValueError(
                    f'{type(module).__name__}.auxiliary_losses() names {name!r}, allowed: names that start '
                    "with 'loss_'"
                )
            value = value.float()
            collected[name] = collected[name] + value if name in collected else value
    return collected


def merge_auxiliary_losses(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> dict[str, Any] | None:
    """Forward hook of a model: add its modules' objectives to its losses.

    Args:
        model (nn.Module): The model, not wrapped.
        args (tuple): What it was called with.
        kwargs (dict): What it was called with.
        output (Any): What it returned.

    Returns:
        dict, optional: The losses with the objectives; None, which leaves the output as it is, for other
        modes than ``'loss'``.

    Raises:
        ValueError: If the model gives a loss of the same name as a module's.
    """
    if not is_loss_pass(model, args, kwargs) or not isinstance(output, dict):
        return None
    return add_losses(model, output, collect_auxiliary_losses(model))


def is_loss_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a model is called with ``mode='loss'``.

    Args:
        model (nn.Module): The model, not wrapped.
        args (tuple): What it is called with.
        kwargs (dict): What it is called with.

    Returns:
        bool: Whether the mode, given or by default, is ``'loss'``.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    # a model may take it among **kwargs
    return bound.arguments.get('mode', kwargs.get('mode')) == 'loss'


def add_losses(model: nn.Module, losses: dict[str, Any], added: dict[str, Tensor]) -> dict[str, Any]:
    """Return the losses of a model together with further ones.

    Args:
        model (nn.Module): The model, for the error message.
        losses (dict): Its losses by name.
        added (dict[str, Tensor]): Further losses by name.

    Returns:
        dict: All of them.

    Raises:
        ValueError: If a name occurs twice.
    """
    if twice := sorted(losses.keys() & added.keys()):
        raise ValueError(
            f'{type(model).__name__} already has {", ".join(twice)}; allowed: one AuxiliaryLossHook, and '
            'names of auxiliary losses that are not those of its own losses'
        )
    return {**losses, **added}
