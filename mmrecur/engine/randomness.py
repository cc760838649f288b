"""Draw random numbers without changing the state of the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mmrecur.models.layers.common.modes import generators_kept


@contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch within a context, and restore their state afterwards.

    The generators of GPUs are included if the process has initialized CUDA.

    Args:
        seed (int): Seed from 0 to 2**32 - 1. Defaults to 0.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with generators_kept():
        try:
            random.seed(seed)
            np.random.seed(seed)
            # torch.manual_seed would also queue a seed for GPUs that the process has not initialized
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
