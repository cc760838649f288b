"""Temporary changes of state, and detection of traced passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within a context.

    Args:
        module (nn.Module): Any module. Each submodule returns to its own previous mode, since norms may be
            in evaluation mode within a module in training.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def is_traced(x: Tensor) -> bool:
    """Return whether a tensor is a placeholder, whose values and layout must not affect decisions.

    Args:
        x (Tensor): Any tensor.

    Returns:
        bool: True under tracing, export, compilation and transforms of ``torch.func``.
    """
    # the type comes first, because placeholders do not support the other checks
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._are_functorch_transforms_active()


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore torch's global random generators on leaving a context.

    Building a layer draws weights even if they are overwritten at once. The generators of GPUs are included
    if this process uses GPUs.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        yield
