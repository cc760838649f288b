"""Activation checkpointing that leaves the running statistics of norms as they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Normalise with batch statistics where training does, without recording them."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before):
        # a share of 0 for the new batch; the same tensors are saved for backward as in the first pass
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked = count


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
        return nullcontext(), _statistics_untouched(module)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)
