"""What modules with an objective of their own have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mmrecur.models.losses.collection import CollectionWatch
from mmrecur.registry import MODELS


class OwnObjective(nn.Module):
    """Base of modules that have an objective besides the losses of a head.

    The objective is a loss, given as a config, that is kept under :attr:`objective`, the name of the
    constructor's argument and of the value in the log. ``AuxiliaryLossHook`` collects it; the module warns
    once if it trains without. A subclass calls :meth:`_build_objective` with its argument and, when all that
    the loss acts on is built, :meth:`_finish_objective`.

    Example:
        >>> import torch
        >>> from mmrecur.models.losses import BasisGroup
        >>> class Layer(OwnObjective):
        ...     objective, objective_aim = 'loss_ortho', 'the orthogonality of its weights'
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

    #: Name of the argument, of the attribute with the loss, and in the log; it starts with ``loss_``.
    objective: ClassVar[str]
    #: What is missing in a training without it, for the warning.
    objective_aim: ClassVar[str]

    def _build_objective(self, cfg: Mapping | None, example: Mapping) -> None:
        """Build the loss.

        Args:
            cfg (Mapping, optional): Its config; None for none.
            example (Mapping): A config that is right, for the message.

        Raises:
            TypeError: If ``cfg`` is no dict with a type.
        """
        if cfg is not None and not (isinstance(cfg, Mapping) and 'type' in cfg):
            raise TypeError(
                f'{self.objective}={cfg!r}, allowed: None, or a dict with a type, e.g. {dict(example)}'
            )
        setattr(self, self.objective, None if cfg is None else MODELS.build(dict(cfg)))

    def _finish_objective(self, acts: bool = True) -> None:
        """Drop a loss without weight or without anything to act on; watch that another is collected.

        Args:
            acts (bool): Whether there is something to act on. Defaults to True.
        """
        loss = getattr(self, self.objective)
        if loss is not None and acts and getattr(loss, 'loss_weight', 1):
            self._watch = CollectionWatch(self.objective_aim)
            self.register_forward_pre_hook(self._watch)
        else:
            self._drop_objective()

    def _drop_objective(self) -> None:
        """Have no objective from here on, as in the inference form."""
        setattr(self, self.objective, None)

    def objective_input(self) -> list[Any]:
        """What the loss is computed from.

        Returns:
            list: Empty if the last pass had nothing to act on.
        """
        raise NotImplementedError

    @property
    def required_hooks(self) -> tuple[dict, ...]:
        """tuple[dict]: Hooks that a training needs, as in ``custom_hooks``; none without an objective."""
        has_loss = getattr(self, self.objective) is not None
        return (dict(type='mmrecur.AuxiliaryLossHook'),) if has_loss else ()

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """The module's own objective.

        Returns:
            dict[str, Tensor]: A scalar under the name :attr:`objective`; nothing without an objective.
        """
        loss = getattr(self, self.objective)
        if loss is None:
            return {}
        self._watch.collected()
        given = self.objective_input()
        return {self.objective: loss(given)} if given else {}
