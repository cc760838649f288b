"""Auxiliary losses of modules, which ``AuxiliaryLossHook`` adds to the losses of a head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmrecur.registry import MODELS


class AuxiliaryObjective(nn.Module):
    """Base class of modules with an auxiliary loss, such as the orthogonality of a backbone's filter bases.

    The loss is configured by a constructor argument, :attr:`loss_name`, and is stored and logged under the
    same name. ``AuxiliaryLossHook`` calls :meth:`auxiliary_losses` in each training step. If nothing calls
    it, the module warns once that it trains without its loss.

    A subclass sets the class attributes, calls :meth:`_build_objective` with its argument, calls
    :meth:`_finish_objective` at the end of its constructor, and implements :meth:`objective_input`.

    Attributes:
        loss_name (str): Name of the argument, of the attribute that holds the loss, and of the value in the
            log. It starts with ``loss_``.
        loss_purpose (str): Property that the loss controls. The warning says that the module trains without
            it.

    Example:
        >>> import torch
        >>> from mmrecur.models.losses import BasisGroup
        >>> class Layer(AuxiliaryObjective):
        ...     loss_name, loss_purpose = 'loss_ortho', 'the orthogonality of its weights'
        ...
        ...     def __init__(self, loss_ortho):
        ...         super().__init__()
        ...         self._build_objective(loss_ortho, dict(type='mmrecur.OrthogonalityLoss'))
        ...         self.weight = nn.Parameter(2 * torch.eye(3))
        ...         self._finish_objective()
        ...
        ...     def objective_input(self):
        ...         return [BasisGroup([self.weight], [])]
        >>> round(Layer(dict(type='mmrecur.OrthogonalityLoss')).auxiliary_losses()['loss_ortho'].item(), 3)
        30.0
    """

    loss_name: ClassVar[str]
    loss_purpose: ClassVar[str]

    def _build_objective(self, cfg: Mapping | None, example: Mapping) -> None:
        """Build the loss and store it under :attr:`loss_name`.

        Args:
            cfg (Mapping, optional): Config of the loss; None for no loss.
            example (Mapping): A valid config, for the error message.

        Raises:
            TypeError: If ``cfg`` is neither None nor a dict with a type.
        """
        if cfg is not None and not (isinstance(cfg, Mapping) and 'type' in cfg):
            raise TypeError(
                f'{self.loss_name}={cfg!r}, allowed: None, or a dict with a type, e.g. {dict(example)}'
            )
        setattr(self, self.loss_name, None if cfg is None else MODELS.build(dict(cfg)))

    def _finish_objective(self, is_active: bool = True) -> None:
        """Register the warning, or drop the loss if it has no effect.

        Args:
            is_active (bool): Whether there are parameters that the loss can train. Defaults to True.
        """
        loss = getattr(self, self.loss_name)
        if loss is not None and is_active and getattr(loss, 'loss_weight', 1):
            self._warning = _UncollectedLossWarning(self.loss_purpose)
            self.register_forward_pre_hook(self._warning)
        else:
            self._drop_objective()

    def _drop_objective(self) -> None:
        """Remove the loss, for example because the module enters its inference form."""
        setattr(self, self.loss_name, None)

    def objective_input(self) -> list[Any]:
        """Return the argument of the loss.

        Returns:
            list: Empty if there is nothing to compute the loss from at present.
        """
        raise NotImplementedError

    @property
    def required_hooks(self) -> tuple[dict, ...]:
        """tuple[dict]: Configs of the hooks that training needs, as in ``custom_hooks``."""
        has_loss = getattr(self, self.loss_name) is not None
        return (dict(type='mmrecur.AuxiliaryLossHook'),) if has_loss else ()

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Compute the auxiliary loss.

        Returns:
            dict[str, Tensor]: A scalar under the key :attr:`loss_name`; empty without a loss.
        """
        loss = getattr(self, self.loss_name)
        if loss is None:
            return {}
        self._warning.mark_collected()
        given = self.objective_input()
        return {self.loss_name: loss(given)} if given else {}


class _UncollectedLossWarning:
    """Forward pre-hook that warns once if a module trains but nothing collects its auxiliary losses.

    Parameters that change between two training passes, without a call of :meth:`mark_collected` in between,
    show that the losses are not part of the training objective. The hook compares the values of one
    parameter. Its version counter is not reliable: fused optimizers and writes through ``parameter.data`` do
    not increase it.

    Args:
        purpose (str): Property that the losses control, for the message.
    """

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose
        self._before: Tensor | None = None
        self._warned = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not module.training or self._warned or torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled() or torch.jit.is_tracing():
            return
        parameter = next((p for p in module.parameters() if p.requires_grad), None)
        # other types are shards of FSDP or stand-ins of torch.func.functional_call
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            return
        if self._before is None or not _are_comparable(self._before, parameter):
            self._before = parameter.detach().clone()
        elif not torch.equal(self._before, parameter):
            self._warned = True
            print_log(
                f'{type(module).__name__} trains without {self.purpose}: nothing collects its auxiliary '
                "losses. Add dict(type='mmrecur.AuxiliaryLossHook') to custom_hooks of the config, or set "
                f'{module.loss_name}=None in the config of the {type(module).__name__}.',
                logger='current',
                level=logging.WARNING,
            )

    def mark_collected(self) -> None:
        """Record that the losses were collected since the last pass."""
        self._before = None


def _are_comparable(a: Tensor, b: Tensor) -> bool:
    """Return whether device, dtype and shape agree; they differ if the module has been moved or converted."""
    return (a.device, a.dtype, a.shape) == (b.device, b.dtype, b.shape)
