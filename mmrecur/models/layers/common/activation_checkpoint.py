"""Activation checkpointing that updates the running statistics of norms only once a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class _StatisticsUntouched:
    """Context in which norms use batch statistics as in training, without recording them.

    It can be entered several times, because a graph may be run backward more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[tuple[_NormBase, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for norm in self.module.modules():
            if isinstance(norm, _NormBase) and norm.training:
                count = norm.num_batches_tracked
                self.before.append((norm, norm.momentum, count))
                # momentum 0 ignores the batch, and autograd saves the same tensors as in the first pass
                norm.momentum = 0.0
                norm.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *exception: object) -> None:
        for norm, momentum, count in self.before:
            norm.momentum = momentum
            norm.num_batches_tracked = count
        self.before.clear()


@torch.compiler.disable  # compilers do not support user-defined contexts
def checkpoint_step(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)``, recomputing its activations in the backward pass.

    A plain checkpoint runs every batch norm twice and updates its running statistics twice a step, so that
    a run with checkpoints would end with other statistics than a run without. Here the second pass does not
    update them.

    Args:
        module (nn.Module): Module that holds every norm that ``function`` runs.
        function (Callable): Function to run.
        *args: Inputs of the function.

    Returns:
        The result of ``function``.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _StatisticsUntouched(module)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def run_step(module: nn.Module, with_cp: bool, function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)``, through :func:`checkpoint_step` if ``with_cp`` is set in training.

    Args:
        module (nn.Module): Module that holds every norm that ``function`` runs.
        with_cp (bool): Recompute activations. Ignored in evaluation and without gradients.
        function (Callable): Function to run.
        *args: Inputs of the function.

    Returns:
        The result of ``function``.
    """
    if with_cp and module.training and torch.is_grad_enabled():
        return checkpoint_step(module, function, *args)
    return function(*args)
