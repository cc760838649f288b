"""Global state of the libraries, which functions of this package leave alone."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import torch
from mmengine.logging import MessageHub

#: Name of a piece of global state -> function that reads it.
STATE: dict[str, Callable[[], Any]] = {
    'python': random.getstate,
    'numpy': lambda: [np.asarray(part).tolist() for part in np.random.get_state()],
    'torch': lambda: torch.get_rng_state().tolist(),
    'threads': lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    'dtype': torch.get_default_dtype,
    'warnings': lambda: list(warnings.filters),
    'cudnn': lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    'algorithms': torch.are_deterministic_algorithms_enabled,
    'precision': torch.get_float32_matmul_precision,
    'gradients': lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    'printing': lambda: (torch._tensor_str.PRINT_OPTS.precision, np.get_printoptions()['precision']),
    'environment': lambda: dict(os.environ),
    'folder': os.getcwd,
    'pictures': lambda: dict(matplotlib.rcParams),
    'loggers': lambda: [logging.getLogger(name).level for name in ('', 'mmengine', 'mmengine.analysis')],
    'messages': lambda: dict(MessageHub.get_current_instance().runtime_info),
}


@contextmanager
def unchanged() -> Iterator[None]:
    """Raise if the body of the context changes global state."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    torch.rand(3), random.random(), np.random.rand()
    before = {name: read() for name, read in STATE.items()}
    yield
    assert [name for name, read in STATE.items() if read() != before[name]] == []
