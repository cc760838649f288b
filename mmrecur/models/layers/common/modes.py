"""State that a function changes for a while, and what kind of pass is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within a context.

    Args:
        module (nn.Module): Any module. Afterwards each of its parts is in the mode that it was in before:
            norms may have been in evaluation mode in a module that trains.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def is_traced(x: Tensor) -> bool:
    """Whether a tensor may stand for others, so that neither its values nor its layout are to be looked at.

    Args:
        x (Tensor): Any tensor.

    Returns:
        bool: True under tracing, export, compilation and the transforms of ``torch.func``.
    """
    # the type check comes first: stand-ins of tracers are not to be asked further
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._are_functorch_transforms_active()


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave torch's global generators as they are, whatever is drawn within a context.

    Building a layer draws its weights, even if others take their place at once. Generators of GPUs are
    included where this process uses any.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        yield
