"""Activation checkpointing that leaves the running statistics of norms as they should be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class _StatisticsUntouched:
    """Context in which norms use batch statistics where training does, without recording them.

    It can be entered again: a graph may be run backward more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[tuple[_NormBase, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for norm in self.module.modules():
            if isinstance(norm, _NormBase) and norm.training:
                count = norm.num_batches_tracked
                self.before.append((norm, norm.momentum, count))
                # a share of 0 for the batch; the same tensors are saved as in the first pass
                norm.momentum = 0.0
                norm.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *exception: object) -> None:
        for norm, momentum, count in self.before:
            norm.momentum = momentum
            norm.num_batches_tracked = count
        self.before.clear()


@torch.compiler.disable  # compilers know no contexts of a user's
def checkpoint_step(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)``, recomputing its activations in the backward pass.

    A plain checkpoint runs every batch norm twice and so updates its running statistics twice a
    step, by which a checkpointed run ends with other weights files than one without. Here the second
    pass leaves them alone.

    Args:
        module (nn.Module): Holds every norm that ``function`` runs.
        function (Callable): What to run.
        *args: Its inputs.

    Returns:
        What ``function`` returns.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _StatisticsUntouched(module)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def run_step(module: nn.Module, with_cp: bool, function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)``, through :func:`checkpoint_step` where it is asked for and saves memory.

    Args:
        module (nn.Module): Holds every norm that ``function`` runs.
        with_cp (bool): Whether recomputation is asked for; it happens in training with gradients only.
        function (Callable): What to run.
        *args: Its inputs.

    Returns:
        What ``function`` returns.
    """
    if with_cp and module.training and torch.is_grad_enabled():
        return checkpoint_step(module, function, *args)
    return function(*args)
