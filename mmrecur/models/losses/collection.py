"""What tells that a module's own losses never reach the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn


class CollectionWatch:
    """Warns once if a module trains on without its auxiliary losses being collected.

    A module with ``auxiliary_losses()`` registers it as a forward pre-hook of itself and calls
    :meth:`collected` in that method. If weights have changed between two training passes and nobody asked
    for the losses meanwhile, they are not part of what is trained.

    Args:
        name (str): What the losses are, for the message.

    Example:
        >>> from torch import nn
        >>> module = nn.Linear(2, 2)
        >>> watch = CollectionWatch('the orthogonality of the weights')
        >>> handle = module.register_forward_pre_hook(watch)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._version: int | None = None
        self._warned = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        """See a forward pass begin.

        Args:
            module (nn.Module): The module that has the losses.
            args (Any): Unused.
        """
        if not module.training or self._warned or torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            return
        # an optimizer's step counts up the version of the parameters it changes
        version = next((p._version for p in module.parameters() if p.requires_grad), None)
        if self._version is None:
            self._version = version
        elif version != self._version:
            self._warned = True
            print_log(
                f'{type(module).__name__} trains without {self.name}: its auxiliary losses are not '
                "collected. Add dict(type='mmrecur.AuxiliaryLossHook') to custom_hooks of the config, or "
                'switch the loss off in the backbone.',
                logger='current',
                level=30,  # logging.WARNING
            )

    def collected(self) -> None:
        """Take note that the losses were asked for."""
        self._version = None
