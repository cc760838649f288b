"""Random numbers of one's own: functions of this package leave the global generators as they were."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mmrecur.models.layers.common.modes import generators_kept


@contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Draw random numbers of Python, NumPy and torch from a seed within a context.

    Afterwards their global generators are in the state that they were in before. Those of GPUs are included
    if this process uses any.

    Args:
        seed (int): From 0 to 2**32 - 1. Defaults to 0.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with generators_kept():
        try:
            random.seed(seed)
            np.random.seed(seed)
            # torch.manual_seed would also seed the GPUs of a process that has not used them yet
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class FreshSeeds:
    """Seeds that depend on torch's global generator, which stays as it is.

    After the same ``torch.manual_seed`` the seeds are the same from run to run. While the generator does not
    move, each one is another all the same.
    """

    def __init__(self) -> None:
        self._state, self._count = 0, 0

    def __call__(self) -> int:
        """Choose a seed.

        Returns:
            int: From 0 to 2**32 - 1.
        """
        state = zlib.crc32(torch.get_rng_state().numpy().tobytes())
        self._count = self._count + 1 if state == self._state else 0
        self._state = state
        return zlib.crc32(self._count.to_bytes(8, 'little'), state)
