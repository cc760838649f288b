"""Second derivatives, transforms of ``torch.func``, forward mode and hooks, of every kind of backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.modules.module import register_module_forward_hook

from mmrecur.models.layers import (
    BasisConv2d,
    FactorizedConv2d,
    FilterBasis,
    RelaxedConv2d,
    RLABottleneck,
    RLAInvertedResidual,
    Tap,
)
from mmrecur.models.layers.loop import LoopPosition
from mmrecur.models.layers.loop.block import gated_loop_blocks
from mmrecur.models.layers.loop.masked_norm import _SumOverProcesses, masked_batch_norm
from tests.helpers import build, image, randomise_norms
from tests.models.zoo import DISTINCT

Named = dict[str, Tensor]

#: One of each kind of computation; the others are among the slow tests.
KINDS = [
    'rla-r50',
    'rla-mobilenet',
    'shared-r18',
    'shared-mobilenet',
    'preact-basic',
    'lag-densenet-bc',
    'swrn-16-2-c2',
    'recnet',
    'dr-r16',
]


def scalar_of(model: nn.Module, x: Tensor) -> Callable[[Named], Tensor]:
    """A scalar function of a model's parameters that does not change the model."""
    buffers = dict(model.named_buffers())

    def function(parameters: Named) -> Tensor:
        torch.manual_seed(0)  # seeds the noise of the gates
        state = {**parameters, **{name: buffer.clone() for name, buffer in buffers.items()}}
        outputs = torch.func.functional_call(model, state, (x,))
        return sum((output * output).mean() for output in outputs)

    return function


def gradient(function: Callable[[Named], Tensor], at: Named) -> Named:
    leaves = [value.detach().requires_grad_() for value in at.values()]
    return dict(zip(at, torch.autograd.grad(function(dict(zip(at, leaves))), leaves, materialize_grads=True)))


def by_double_backward(
    function: Callable[[Named], Tensor], at: Named, direction: Named
) -> tuple[Named, Named]:
    """The gradient and its derivative along a direction, by differentiating a gradient's graph."""
    leaves = [value.detach().requires_grad_() for value in at.values()]
    value = function(dict(zip(at, leaves)))
    first = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
    along = sum((g * direction[name]).sum() for name, g in zip(at, first))
    second = torch.autograd.grad(along, leaves, materialize_grads=True)
    return {name: g.detach() for name, g in zip(at, first)}, dict(zip(at, second))


def by_differences(function: Callable[[Named], Tensor], at: Named, direction: Named) -> Named:
    # in double precision; a short step, since a ReLU that it switches would count
    step, ends = 1e-9, []
    for sign in (1, -1):
        moved = {name: value + sign * step * direction[name] for name, value in at.items()}
        ends.append(gradient(function, moved))
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in at}


def assert_near(actual: Named, expected: Named, tolerance: float) -> None:
    size = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= tolerance * size, name


def point(name: str, training: bool, **overrides) -> tuple[Callable[[Named], Tensor], Named, Named, bool]:
    """A function, parameters, a direction, and whether the gradient is the derivative."""
    model = build(name, **overrides).double().train(training)
    at = {key: value.detach() for key, value in model.named_parameters()}
    torch.manual_seed(1)
    direction = {key: value.abs().mean() * torch.randn_like(value) for key, value in at.items()}
    # straight-through gradients of gates are not
    exact = not (training and gated_loop_blocks(model))
    return scalar_of(model, image(3, 3, 40, 40).double()), at, direction, exact


def check_second_derivatives(name: str, training: bool) -> None:
    function, at, direction, exact = point(name, training)
    first, second = by_double_backward(function, at, direction)
    if exact:
        assert_near(second, by_differences(function, at, direction), 1e-4)
    by_transform = torch.func.jvp(torch.func.grad(function), (at,), (direction,))
    assert_near(by_transform[0], first, 1e-10)
    assert_near(by_transform[1], second, 1e-9)


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('training', [True, False])
def test_second_derivatives(name: str, training: bool) -> None:
    check_second_derivatives(name, training)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in DISTINCT if name not in KINDS])
@pytest.mark.parametrize('training', [True, False])
def test_second_derivatives_of_all(name: str, training: bool) -> None:
    check_second_derivatives(name, training)


@pytest.mark.parametrize('name', ['rla-r50', 'shared-r18', 'dr-r16'])
def test_second_derivatives_of_recomputed_activations(name: str) -> None:
    results = []
    for with_cp in (False, True):
        results.append(by_double_backward(*point(name, True, with_cp=with_cp)[:3]))
    for plain, recomputed in zip(*results):
        assert_near(recomputed, plain, 1e-10)


@pytest.mark.parametrize('name', ['rla-r50', 'rla-mobilenet', 'shared-r18', 'recnet', 'dr-r'])
def test_gradients_of_single_images_by_vmap(name: str) -> None:
    model = build(name).double().eval()
    at = {key: value.detach() for key, value in model.named_parameters()}
    images = image(2, 3, 32, 32).double()

    def loss(parameters: Named, x: Tensor) -> Tensor:
        return sum(y.square().mean() for y in torch.func.functional_call(model, parameters, (x[None],)))

    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(at, images)
    for index, x in enumerate(images):
        expected = gradient(lambda parameters, x=x: loss(parameters, x), at)
        assert_near({key: value[index] for key, value in mapped.items()}, expected, 1e-10)


@pytest.mark.parametrize('name', ['rla-r50', 'rla-mobilenet', 'shared-r18'])
@pytest.mark.parametrize('training', [True, False])
def test_global_hooks_see_every_norm_and_convolution(name: str, training: bool) -> None:
    model, seen = build(name).train(training), set()
    handle = register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(image(2, 3, 32, 32))
    finally:
        handle.remove()
    kinds = (nn.BatchNorm2d, nn.Conv2d)
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, kinds)}
    layers.pop('layer1.0.conv1_hidden', None)  # it would read the first state, which is zero
    assert [key for key, layer in layers.items() if layer not in seen] == []


def residual_block() -> nn.Module:
    return _WithReadout(RLABottleneck(4, 3, 4), nn.Conv2d(4, 2, 1, bias=False))


def inverted_block() -> nn.Module:
    return _WithReadout(RLAInvertedResidual(4, 6, 4), nn.Conv2d(4, 2, 1, bias=False))


def factorised() -> nn.Module:
    return FactorizedConv2d(FilterBasis(3, 4), 5, 1)


def relaxed_basis() -> nn.Module:
    return BasisConv2d(FilterBasis(5, 4), relaxation_rank=2)


def relaxed_iteration() -> nn.Module:
    return RelaxedConv2d(nn.Conv2d(4, 5, 3, padding=1), 1, 2, LoopPosition())


class _WithReadout(nn.Module):
    """A block with a tap on its residual and a single output."""

    def __init__(self, block: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.block, self.readout = block, readout

    def forward(self, x: Tensor) -> Tensor:
        tap = Tap(readout=self.readout)
        return torch.cat([self.block(x, tap=tap), tap.value], dim=1)


class _Masked(nn.Module):
    """A norm by the statistics of the first and the last of three samples."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return masked_batch_norm(x, self.norm, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    'make', [residual_block, inverted_block, factorised, relaxed_basis, relaxed_iteration, _Masked]
)
@pytest.mark.parametrize('training', [True, False])
def test_layers_have_second_derivatives(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    layer = make().double().train(training)
    randomise_norms(layer)  # no ReLU of a zero
    x = torch.randn(3, 4, 3, 2, dtype=torch.double, requires_grad=True)
    names, leaves = zip(*layer.named_parameters())
    buffers = dict(layer.named_buffers())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        state = {key: buffer.clone() for key, buffer in buffers.items()}
        return torch.func.functional_call(layer, {**state, **dict(zip(names, values))}, (x,))

    assert gradcheck(function, (x, *leaves), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, (x, *leaves), check_fwd_over_rev=True, fast_mode=True)


def test_sums_over_processes_have_all_derivatives(tmp_path: Path) -> None:
    dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        x = torch.randn(3, dtype=torch.double, requires_grad=True)

        def function(x: Tensor) -> Tensor:
            return _SumOverProcesses.apply(x, dist.group.WORLD).square()

        assert gradcheck(function, x, check_forward_ad=True)
        assert gradgradcheck(function, x, check_fwd_over_rev=True)
        assert torch.equal(torch.func.hessian(lambda x: function(x).sum())(x), 2 * torch.eye(3).double())
    finally:
        dist.destroy_process_group()


class _MaskedByOnes(nn.Module):
    """A norm by the statistics of all samples."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.plain else masked_batch_norm(x, self.norm, torch.ones(len(x)))


class _NormAndReadout(nn.Module):
    """The end of an RLA block, as it is run and as separate steps."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.block = RLABottleneck(16, 8, 16)
        self.readout = nn.Conv2d(16, 4, 1, bias=False)
        for name in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'relu'):
            setattr(self.block, name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            residual = self.block.bn3(x)
            return torch.cat([residual + x, self.readout(residual)], dim=1)
        tap = Tap(readout=self.readout)
        return torch.cat([self.block(x, tap=tap), tap.value], dim=1)


class _NormAndCoefficients(nn.Module):
    """A factorised convolution whose basis copies channels, as it is run and as separate steps."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.basis = FilterBasis(16, 16, kernel_size=1)
        self.basis.requires_grad_(False).weight.copy_(torch.eye(16)[..., None, None])
        self.conv = FactorizedConv2d(self.basis, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.coefficients(self.conv.norm(x)) if self.plain else self.conv(x)


@pytest.mark.parametrize('make', [_NormAndReadout, _NormAndCoefficients, _MaskedByOnes])
@pytest.mark.parametrize('ratio', [100, 300, 1000])
def test_single_precision_is_as_accurate_as_torchs_where_means_are_large(
    make: Callable[[bool], nn.Module], ratio: float
) -> None:
    x = ratio + image(4, 16, 14, 14)
    results = []
    for plain, dtype in ((True, torch.double), (True, torch.float), (False, torch.float)):
        torch.manual_seed(0)
        layer = make(plain)
        layer.to(dtype)
        leaf = x.to(dtype).requires_grad_()
        y = layer(leaf)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape).to(dtype))
        grads = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
        results.append({'x': leaf.grad, 'y': y.detach(), **grads})
    exact, of_torch, own = results
    for key, value in exact.items():
        errors = [(result[key] - value).norm() / value.norm() for result in (of_torch, own)]
        assert errors[1] <= 1.5 * errors[0] + 2e-7, key
