"""Generated weights follow every way of changing the parameters of a bank."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from torch import Tensor, nn

from mmrecur.models.backbones import SWRN
from mmrecur.models.layers import TemplateBank, share_convs
from mmrecur.models.shortest_path import ShortestPathNet


def build_bank(rows: tuple[int, ...] | None = None) -> nn.Module:
    torch.manual_seed(0)
    return TemplateBank(5, 3, (6, 4, 3, 3), rows=rows)


def build_tied_bank() -> nn.Module:
    return build_bank(rows=(0, 1, 0, 2, 1))


def build_stages() -> nn.Module:
    torch.manual_seed(0)
    return SWRN(16, 1, num_templates=1, base_channels=4)


def build_path_net() -> nn.Module:
    torch.manual_seed(0)
    return ShortestPathNet(2, num_layers=3, channels=4)


def build_any_network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    share_convs(model, 2)
    return model


BUILDERS = [build_bank, build_tied_bank, build_stages, build_path_net, build_any_network]


def compute(model: nn.Module) -> tuple[Tensor, ...]:
    """Return the weights of a bank, or the outputs of a network."""
    if isinstance(model, TemplateBank):
        return model()
    channels = 2 if isinstance(model, ShortestPathNet) else 3
    outputs = model(torch.randn(2, channels, 9, 9, generator=torch.Generator().manual_seed(1)))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_up_to_date(model: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Compare the model with a new one that has the same parameters and has never run."""
    fresh = build()
    fresh.load_state_dict(model.state_dict())
    fresh.train(model.training)
    for ours, expected in zip(compute(model), compute(fresh), strict=True):
        assert torch.equal(ours, expected)


def backward(model: nn.Module) -> None:
    with torch.enable_grad():
        sum(output.square().sum() for output in compute(model)).backward()


def fused_step(model: nn.Module) -> None:
    """Step a fused optimizer, which does not increase version counters, after an evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    model.train()
    backward(model)
    model.eval()
    compute(model)
    optimizer.step()


def step_of_all(model: nn.Module) -> None:
    backward(model)
    torch.optim.AdamW(model.parameters(), 0.1, foreach=True).step()


def write_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def replace_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data


def write_through_numpy(model: nn.Module) -> None:
    for parameter in model.parameters():
        array = parameter.detach().numpy()
        array *= 1.5


def write_all(model: nn.Module) -> None:
    torch._foreach_mul_([parameter.data for parameter in model.parameters()], 1.5)


def write_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.data.mul_(1.5)


def replace_parameters(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(1.5 * parameter.detach()))


def load(model: nn.Module, assign: bool = False) -> None:
    state = {k: 1.5 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def load_and_assign(model: nn.Module) -> None:
    load(model, assign=True)


def swap(model: nn.Module) -> None:
    """Swap in averaged parameters, like MMEngine's EMA hook before a validation."""
    runner = SimpleNamespace(model=model, iter=0)
    hook = EMAHook(momentum=0.5)
    hook.before_run(runner)
    write_data(model)
    hook.after_train_iter(runner, 0)
    write_data(model)
    hook.after_train_iter(runner, 1)
    compute(model)
    hook.before_val_epoch(runner)


WRITES = [
    fused_step,
    step_of_all,
    write_data,
    replace_data,
    write_through_numpy,
    write_all,
    write_in_inference_mode,
    replace_parameters,
    load,
    load_and_assign,
    swap,
]


@pytest.mark.parametrize('build', BUILDERS)
@pytest.mark.parametrize('write', WRITES)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_weights_follow_every_change_of_the_parameters(build, write, mode) -> None:
    model = build().eval()
    with mode():
        before = [output.clone() for output in compute(model)]
    with torch.no_grad():
        write(model)
    with mode():
        after = compute(model)
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert_up_to_date(model, build)


@pytest.mark.parametrize('build', BUILDERS)
@pytest.mark.parametrize('average', [ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage])
@pytest.mark.parametrize('training', [True, False])
def test_averaged_models_use_their_averages(build, average, training: bool) -> None:
    model = build().train(training)
    averaged = average(model)
    with torch.no_grad():
        for _ in range(3):
            write_data(model)
            averaged.update_parameters(model)
            compute(averaged.module)
            assert_up_to_date(averaged.module, build)
    assert not torch.equal(next(averaged.module.parameters()), next(model.parameters()))


@pytest.mark.parametrize('build', BUILDERS)
def test_copies_are_independent(build) -> None:
    model = build().eval()
    with torch.no_grad():
        expected = compute(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            write_data(other)
            assert_up_to_date(other, build)
        for ours, before in zip(compute(model), expected, strict=True):
            assert torch.equal(ours, before)


@pytest.mark.parametrize('build', BUILDERS)
def test_functional_call_uses_the_given_parameters(build) -> None:
    model, other = build().eval(), build().eval()
    with torch.no_grad():
        write_data(other)
        compute(model)
        if isinstance(model, TemplateBank):
            given = torch.func.functional_call(model, dict(other.named_parameters()), ())
            for ours, expected in zip(given, compute(other), strict=True):
                assert torch.equal(ours, expected)
        else:
            x = torch.randn(2, 2 if isinstance(model, ShortestPathNet) else 3, 9, 9)
            given = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
            assert torch.equal(given[0], other(x)[0])
        assert_up_to_date(model, build)
