"""What tells that a module's own losses never reach the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


class CollectionWatch:
    """Warns once if a module trains on without its auxiliary losses being collected.

    A module with ``auxiliary_losses()`` registers it as a forward pre-hook of itself and calls
    :meth:`collected` in that method. If weights have changed between two training passes and nobody asked
    for the losses meanwhile, they are not part of what is trained.

    The weights are compared by the values of one parameter: fused optimizers and what writes through
    ``parameter.data`` leave its version as it was.

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
        self._before: Tensor | None = None
        self._warned = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        """See a forward pass begin.

        Args:
            module (nn.Module): The module that has the losses.
            args (Any): Unused.
        """
        if not module.training or self._warned or torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled() or torch.jit.is_tracing():
            return
        parameter = next((p for p in module.parameters() if p.requires_grad), None)
        if type(parameter) is not nn.Parameter or parameter.is_meta:  # a shard, or given for one call
            return
        if self._before is None or not _are_alike(self._before, parameter):  # moved meanwhile
            self._before = parameter.detach().clone()
        elif not torch.equal(self._before, parameter):
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
        self._before = None


def _are_alike(a: Tensor, b: Tensor) -> bool:
    return (a.device, a.dtype, a.shape) == (b.device, b.dtype, b.shape)
