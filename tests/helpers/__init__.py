"""Helpers that several test modules use."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmrecur.registry  # noqa: F401
from mmrecur.models.backbones import Backbone
from mmrecur.models.layers import GumbelGate, LowRankResidual
from tests.models.zoo import BACKBONES


def randomise_norms(module: nn.Module, seed: int = 0) -> None:
    """Give norms the statistics and parameters of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm)):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)


def build(name: str, **overrides) -> Backbone:
    """Build a backbone of the zoo with the norms of a trained network."""
    torch.manual_seed(0)
    model = MODELS.build({**BACKBONES[name], **overrides})
    randomise_norms(model)
    for gate in model.modules():
        if isinstance(gate, GumbelGate):  # so that some samples pass and others do not
            nn.init.normal_(gate.fc2.weight, std=10)
            nn.init.zeros_(gate.fc2.bias)
    for residual in model.modules():
        if isinstance(residual, LowRankResidual):
            nn.init.normal_(residual.up, std=0.3)
    return model


def image(*shape: int) -> Tensor:
    """Return normally distributed pixels, the same in every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the mean squares of all outputs by parameter name."""
    model.zero_grad()
    torch.manual_seed(0)  # for the noise of gates
    sum((output * output).mean() for output in model(x)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(
    actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], rtol: float, atol: float = 0.0
) -> None:
    """Compare maps by the largest deviation relative to the largest value."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        assert a.shape == b.shape
        assert (a.float() - b.float()).abs().max() <= rtol * b.float().abs().max() + atol


def halve_batches(model: nn.Module, x: Tensor) -> None:
    """Give each gate the bias with which half of the samples in ``x`` that reach it first pass."""

    def balance(gate: nn.Module, args: tuple) -> None:
        handles.pop(gate).remove()
        scores = gate.scores(args[0])
        margins = (scores[:, 1] - scores[:, 0]).sort().values
        middle = len(margins) // 2
        gate.fc2.bias[0] += margins[middle - 1 : middle + 1].mean()  # no sample is a tie

    gates = [block.gate for block in model.loop_blocks().values()]
    handles = {gate: gate.register_forward_pre_hook(balance) for gate in gates}
    with torch.no_grad():
        model(x)
