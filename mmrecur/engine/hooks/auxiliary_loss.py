"""Add the objectives of modules inside a model to the losses of the model."""

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
    """Add the auxiliary losses of a model's modules to the losses that the model returns.

    A module takes part if it has a method ``auxiliary_losses() -> dict[str, Tensor]``. The names of its
    losses start with ``loss_``. For ``mode='loss'``, the losses of all modules in training mode are merged
    into the dict that the model returns, so they are trained and logged. This works in every detector and
    classifier, also within a wrapper such as ``DistributedDataParallel``. Losses with the same name are added
    up. They are computed in float32, outside autocast.

    Example:
        >>> custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]  # in a config
    """

    def __init__(self) -> None:
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        """Start to add the auxiliary losses.

        Args:
            runner (Runner): The runner of the training.
        """
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        self.after_train(runner)
        self._handle = model.register_forward_hook(merge_auxiliary_losses, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Stop adding the auxiliary losses.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def collect_auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Compute the auxiliary losses of all modules of a model.

    Args:
        model (nn.Module): Any module.

    Returns:
        dict[str, Tensor]: Scalars in float32 by name. Losses with the same name are added up. Modules in
        evaluation mode, such as a teacher or a backbone in its inference form, are left out.

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
    """Merge the auxiliary losses of a model's modules into its losses, as a forward hook of the model.

    Args:
        model (nn.Module): The model, not wrapped.
        args (tuple): Positional arguments of the forward pass.
        kwargs (dict): Keyword arguments of the forward pass.
        output (Any): Output of the forward pass.

    Returns:
        dict, optional: All losses if the mode is ``'loss'``. Otherwise None, which keeps the output.

    Raises:
        ValueError: If a loss of the model and an auxiliary loss have the same name.
    """
    if not is_loss_pass(model, args, kwargs) or not isinstance(output, dict):
        return None
    return add_losses(model, output, collect_auxiliary_losses(model))


def is_loss_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a model is called with ``mode='loss'``.

    Args:
        model (nn.Module): The model, not wrapped.
        args (tuple): Positional arguments of the forward pass.
        kwargs (dict): Keyword arguments of the forward pass.

    Returns:
        bool: Whether the mode, given or by default, is ``'loss'``.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    # Some models take the mode in **kwargs.
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
            'auxiliary losses whose names differ from those of the model'
        )
    return {**losses, **added}
