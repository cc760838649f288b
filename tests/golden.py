"""Replays the outputs of the authors' implementations that ``tests/data/golden`` holds.

Weights and inputs are functions of the keys' names, so a fixture stores outputs only.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / 'data' / 'golden'


@dataclass
class Golden:
    """A fixture: the authors' state dict, an input and what came out."""

    name: str
    state_dict: dict[str, Tensor]
    input: Tensor
    parameters: int
    loss: float
    grad_norms: dict[str, float]
    outputs: dict[str, Tensor]


def tensor_for(key: str, shape: list[int]) -> Tensor:
    """The value every fixture has under a key."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return torch.zeros((), dtype=torch.long)
    if leaf == 'running_var':
        value = 0.5 + rng.random_sample(shape)
    elif leaf in ('running_mean', 'bias'):
        value = 0.1 * rng.standard_normal(shape)
    elif leaf == 'coefficients':
        value = rng.standard_normal(shape) / np.sqrt(shape[0])
    elif len(shape) == 1:
        value = 0.5 + rng.random_sample(shape)
    else:
        # a template bank's first axis counts templates
        fan_in = np.prod(shape[2:] if len(shape) == 5 else shape[1:])
        value = 0.5 * rng.standard_normal(shape) / np.sqrt(fan_in)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def load(name: str) -> Golden:
    """Read a fixture.

    Args:
        name (str): File stem in ``tests/data/golden``.

    Returns:
        Golden: The fixture with its weights and input made.
    """
    meta = json.loads((DATA / f'{name}.json').read_text())
    shape = meta['input']['shape']
    image = np.random.RandomState(meta['input']['seed']).standard_normal(shape).astype(np.float32)
    with np.load(DATA / f'{name}.npz') as arrays:
        outputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return Golden(
        name=name,
        state_dict={key: tensor_for(key, shape) for key, shape in meta['keys']},
        input=torch.from_numpy(image),
        parameters=meta['parameters'],
        loss=meta['loss'],
        grad_norms=meta['grad_norms'],
        outputs=outputs,
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest deviation relative to the reference's largest value."""
    return ((value - reference).abs().max() / reference.abs().max()).item()
