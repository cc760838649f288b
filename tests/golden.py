"""Replays the outputs of the authors' implementations that ``tests/data/golden`` holds.

Weights and inputs are functions of the keys' names, so a fixture stores outputs only.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / 'data' / 'golden'


@dataclass
class Golden:
    """A fixture: the authors' state dict, an input and the outputs."""

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


@dataclass
class Step:
    """A training step: outputs, loss, norms of the gradients by the authors' keys."""

    outputs: list[Tensor]
    loss: float
    norms: dict[str, float]

    @classmethod
    def of(cls, model: nn.Module, image: Tensor, norms: Callable[[nn.Module], dict[str, float]]) -> Step:
        """Take the step; ``norms`` reads the gradients."""
        outputs = model.train()(image)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        loss = sum(output.square().mean() for output in outputs)
        loss.backward()
        return cls([o.detach() for o in outputs], loss.item(), norms(model))

    @classmethod
    def stored(cls, fixture: Golden) -> Step:
        """The authors' step."""
        outputs = [v for key, v in sorted(fixture.outputs.items()) if key.startswith('train_')]
        # None where no output depends on a parameter
        norms = {key: norm for key, norm in fixture.grad_norms.items() if norm is not None}
        return cls(outputs, fixture.loss, norms)

    def distance(self, reference: Step) -> tuple[float, float]:
        """Largest relative deviations of an output and of a gradient from another step's."""
        pairs = zip(self.outputs, reference.outputs, strict=True)
        outputs = max(relative_error(mine.double(), theirs) for mine, theirs in pairs)
        # gradients that vanish in exact arithmetic are rounding noise on both sides
        floor = 1e-3 * max(reference.norms.values())
        # the authors' step reports the gradient of a tensor with several names under one of them
        common = {key: norm for key, norm in reference.norms.items() if norm and key in self.norms}
        return outputs, max(abs(self.norms[k] - norm) / max(norm, floor) for k, norm in common.items())


def replay(fixture: Golden, model: nn.Module, norms: Callable[[nn.Module], dict[str, float]]) -> None:
    """Compare a model's outputs and its training step with a fixture.

    Args:
        fixture (Golden): The authors' outputs and gradients.
        model (nn.Module): Ours, with the fixture's weights.
        norms (Callable): From a model to the norms of its gradients by the authors' keys.
    """
    model.eval()
    with torch.no_grad():
        outputs = model(fixture.input)
        for i, output in enumerate([outputs] if isinstance(outputs, Tensor) else outputs):
            assert relative_error(output, fixture.outputs[f'eval_{i}']) < 1e-4, f'eval_{i}'
    theirs, images = Step.stored(fixture), fixture.input
    step = Step.of(copy.deepcopy(model), images, norms)
    assert abs(step.loss - fixture.loss) < 1e-3 * fixture.loss
    assert {key for key, norm in theirs.norms.items() if norm} <= step.norms.keys()
    outputs, gradients = step.distance(theirs)
    if outputs < 1e-4 and gradients < 1e-3:
        return
    # Batch statistics over a few pixels amplify rounding layer by layer, until the order of a sum shows in
    # the fourth digit. No other difference is allowed: compared with the same step in double precision, the
    # fixture must be as close as float32 steps on images that differ in their last bit.
    exact = Step.of(copy.deepcopy(model).double(), images.double(), norms)
    near = [Step.of(copy.deepcopy(model), images * scale, norms) for scale in (1 - 1e-7, 1 + 1e-7)]
    rounding = [own.distance(exact) for own in (step, *near)]
    assert all(outputs < 1e-3 and gradients < 5e-2 for outputs, gradients in rounding)
    for fixture_error, own_errors in zip(theirs.distance(exact), zip(*rounding)):
        assert fixture_error < 3 * max(own_errors)
