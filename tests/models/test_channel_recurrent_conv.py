"""Channel-wise recurrent convolutions, compared with the equations of the paper."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.analysis.benchmark import evaluation_call, peak_memory, training_call
from mmrecur.models.layers import ChannelRecurrentConv, RecurrentModule, pointwise_sum
from tests.helpers import randomise_norms

ACTIVATIONS = ['relu', 'shared_bn', 'separate_bn', 'linear']

KERNELS = [(3, 3), (1, 3), (3, 1), (1, 1)]


def reference(layer: ChannelRecurrentConv, x: Tensor) -> Tensor:
    """Compute Equations 2 to 4 literally, with the parameters of the layer."""
    wx, wh = layer.conv_x.weight, layer.conv_h.weight
    px, ph = wx.shape[-1] // 2, wh.shape[-1] // 2
    h: list[Tensor] = []
    for i, xi in enumerate(x.chunk(layer.steps, dim=1)):
        s = F.conv2d(xi, wx, padding=px)
        if i > 0:
            s = s + F.conv2d(h[i - 1], wh, padding=ph)
        if layer.activation == 'relu':
            h.append(torch.relu(s + layer.conv_x.bias.view(-1, 1, 1)))
        elif layer.activation == 'shared_bn':
            h.append(torch.relu(layer.norms[0](s)))
        elif layer.activation == 'separate_bn':
            h.append(torch.relu(layer.norms[i](s)))
        else:
            h.append(s + layer.conv_h.bias.view(-1, 1, 1) if i > 0 else s)
    if layer.activation == 'linear':
        h = [torch.relu(norm(hi)) for norm, hi in zip(layer.norms, h)]
    return torch.cat(h, dim=1)


def make(steps: int = 5, seed: int = 0, **options) -> ChannelRecurrentConv:
    torch.manual_seed(seed)
    layer = ChannelRecurrentConv(3, 4, steps, **options).double()
    randomise_norms(layer)
    return layer


def make_module(**options) -> RecurrentModule:
    module = RecurrentModule(make(**options), out_channels=7).double()
    randomise_norms(module)
    return module


def outputs_and_gradients(function, x: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    output = function(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    grads = torch.autograd.grad((output * weights).sum(), [x, *parameters.values()])
    return dict(zip(['output', 'x', *parameters], [output.detach(), *grads]))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        # absolute tolerance too: some gradients are zero in exact arithmetic
        assert torch.allclose(actual[name], value, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('training', [True, False])
def test_layer_computes_the_equations_of_the_paper(activation: str, kernels: tuple, training: bool) -> None:
    kx, kh = kernels
    layer = make(activation=activation, kernel_size_x=kx, kernel_size_h=kh).train(training)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 15, 7, 6, dtype=torch.float64)
    actual = outputs_and_gradients(layer, x, dict(layer.named_parameters()))
    assert_same(actual, outputs_and_gradients(lambda x: reference(twin, x), x, dict(twin.named_parameters())))
    for (name, buffer), other in zip(layer.named_buffers(), twin.buffers()):
        assert torch.allclose(buffer, other, atol=1e-6), name


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('training', [True, False])
def test_module_computes_layer_and_transition(activation: str, training: bool) -> None:
    """Equation 7, the sum over the steps, equals Equation 6, the convolution of all steps at once."""
    module = make_module(activation=activation).train(training)
    twin = copy.deepcopy(module)
    x = torch.randn(2, 15, 7, 6, dtype=torch.float64)
    actual = outputs_and_gradients(module, x, dict(module.named_parameters()))
    expected = outputs_and_gradients(
        lambda x: torch.relu(twin.norm(twin.conv(reference(twin.crc, x)))), x, dict(twin.named_parameters())
    )
    assert_same(actual, expected)


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('kernels', KERNELS)
@pytest.mark.parametrize('recurrent', [True, False])
@pytest.mark.parametrize('steps', [1, 4])
def test_inference_form_is_exact(activation: str, kernels: tuple, recurrent: bool, steps: int) -> None:
    kx, kh = kernels
    options = dict(kernel_size_x=kx, kernel_size_h=kh, recurrent=recurrent, steps=steps)
    module = make_module(activation=activation, **options).eval()
    # one channel with a scale of zero and one with a negative scale
    for norm in module.crc.norms:
        norm.weight.data[:2] = torch.tensor([0.0, -1.0])
    x = torch.randn(2, 3 * steps, 9, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        module.switch_to_deploy()
        assert torch.allclose(module(x), expected, rtol=1e-8, atol=1e-8)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        module.switch_to_deploy()
        assert torch.allclose(module(x), expected, rtol=1e-8, atol=1e-8)


def test_input_with_wrong_channels_is_rejected() -> None:
    layer = ChannelRecurrentConv(2, 4, steps=3)
    for channels in (4, 7, 8):
        with pytest.raises(RuntimeError, match=rf'{channels} .*\[2, 2, 2\]'):
            layer(torch.zeros(1, channels, 5, 5))


def grouped_reference(layer: ChannelRecurrentConv, x: Tensor) -> Tensor:
    """Compute the layer of Section 3.1.4 with the product of both kernels written out."""
    wx, wh = layer.conv_x.weight, layer.conv_h.weight
    kx, kh = wx.shape[-1], wh.shape[-1]
    kernel = x.new_zeros(wh.shape[0], wx.shape[1], kx + kh - 1, kx + kh - 1)
    for a in range(kh):
        for b in range(kh):
            kernel[:, :, a : a + kx, b : b + kx] += torch.einsum('om,mikl->oikl', wh[:, :, a, b], wx)
    outputs = []
    for i, xi in enumerate(x.chunk(layer.steps, dim=1)):
        s = F.conv2d(xi, kernel, padding=(kx + kh - 2) // 2)
        if layer.activation == 'relu':
            s = s + layer.conv_x.bias.view(-1, 1, 1)
        elif layer.activation == 'linear':
            s = s + layer.conv_h.bias.view(-1, 1, 1)
        if layer.activation != 'relu':
            s = layer.norms[0 if layer.activation == 'shared_bn' else i](s)
        outputs.append(torch.relu(s))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('kernels', KERNELS)
def test_grouped_counterpart(activation: str, kernels: tuple) -> None:
    options = dict(activation=activation, kernel_size_x=kernels[0], kernel_size_h=kernels[1])
    layer = make(recurrent=False, **options)
    shapes = {name: p.shape for name, p in make(**options).named_parameters()}
    assert {name: p.shape for name, p in layer.named_parameters()} == shapes
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 15, 8, 6, dtype=torch.float64)
    actual = outputs_and_gradients(layer, x, dict(layer.named_parameters()))
    assert_same(
        actual, outputs_and_gradients(lambda x: grouped_reference(twin, x), x, dict(twin.named_parameters()))
    )


def unrolled(layer: ChannelRecurrentConv, x: Tensor) -> Tensor:
    """Compute Equation 5 without bias: each segment is convolved with W_x and a power of W_h."""
    wx, wh = layer.conv_x.weight, layer.conv_h.weight
    parts, outputs = x.chunk(layer.steps, dim=1), []
    for i in range(layer.steps):
        total = 0
        for j in range(i + 1):
            kernel = wx.transpose(0, 1)
            for _ in range(i - j):
                kernel = F.conv2d(kernel, wh.flip(2, 3), padding=wh.shape[-1] - 1)
            total = total + F.conv2d(parts[j], kernel.transpose(0, 1), padding=kernel.shape[-1] // 2)
        outputs.append(torch.relu(layer.norms[i](total)))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize('kernel_size_h', [1, 3])
def test_equation_5_is_the_linear_layer_away_from_the_border(kernel_size_h: int) -> None:
    layer = make(activation='linear', kernel_size_h=kernel_size_h, steps=4).eval()
    layer.conv_h.bias.data.zero_()
    x = torch.randn(1, 12, 17, 17, dtype=torch.float64)
    with torch.no_grad():
        difference = (layer(x) - unrolled(layer, x)).abs()
    if kernel_size_h == 1:
        assert difference.max() < 1e-9
        return
    # the border is as wide as three 3x3 windows of padded states and one of the input
    assert difference[..., 4:-4, 4:-4].max() < 1e-9
    assert difference.max() > 1e-2


def test_a_segment_depends_on_itself_and_earlier_segments_only() -> None:
    """The imbalance of Section 2.2, which the transition block removes."""
    module = make_module(steps=4).eval()
    x = torch.randn(1, 12, 7, 7, dtype=torch.float64, requires_grad=True)
    for i, h in enumerate(module.crc(x).chunk(4, dim=1)):
        (grad,) = torch.autograd.grad(h.sum(), x, retain_graph=True)
        seen = [part.abs().sum().item() > 0 for part in grad.chunk(4, dim=1)]
        assert seen == [j <= i for j in range(4)]
    (grad,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
    assert all(part.abs().sum() > 0 for part in grad.chunk(4, dim=1))


@pytest.mark.parametrize('bias', [None, torch.tensor([1.0, -2.0])])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sum_of_pointwise_convolutions(bias: Tensor | None, dtype: torch.dtype) -> None:
    maps = [torch.randn(2, c, 5, 3, dtype=dtype) for c in (3, 1, 4)]
    weights = [torch.randn(2, m.size(1), 1, 1, dtype=dtype) for m in maps]
    bias = bias if bias is None else bias.to(dtype)
    expected = F.conv2d(torch.cat(maps, dim=1), torch.cat(weights, dim=1), bias)
    assert torch.allclose(pointwise_sum(iter(maps), weights, bias), expected, atol=1e-5)
    traced = torch.jit.trace(lambda *maps: pointwise_sum(maps, weights, bias), maps)
    assert torch.allclose(traced(*maps), expected, atol=1e-5)


def test_sum_in_half_precision_is_rounded_once() -> None:
    """A running sum of 50 nines in bf16 would be rounded in every step: above 256 its spacing is 2."""
    maps = [torch.full((1, 1, 2, 2), 9.0) for _ in range(50)]
    with torch.autocast('cpu', torch.bfloat16):
        total = pointwise_sum(maps, [torch.ones(1, 1, 1, 1)] * 50)
    assert total.dtype == torch.bfloat16
    assert torch.equal(total, torch.full((1, 1, 2, 2), 450.0).bfloat16())
    weights = [torch.ones(1, 1, 1, 1).bfloat16()] * 50
    assert torch.equal(pointwise_sum([x.bfloat16() for x in maps], weights), total)


def test_sum_of_no_images() -> None:
    total = pointwise_sum([torch.zeros(0, 3, 5, 4)] * 2, [torch.zeros(2, 3, 1, 1)] * 2)
    assert total.shape == (0, 2, 5, 4)


class WideModule(nn.Module):
    """Compute the whole output of the layer, then the transition block."""

    def __init__(self, module: RecurrentModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor]:
        module = self.module
        return (torch.relu(module.norm(module.conv(reference(module.crc, x)))),)


class MergedModule(WideModule):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.module(x),)


def test_module_never_holds_the_wide_map() -> None:
    """Compares the peak memory beyond weights and input, from the events of the allocator."""
    torch.manual_seed(0)
    module = RecurrentModule(ChannelRecurrentConv(4, 16, steps=12), out_channels=48)
    # large enough for oneDNN convolutions; those of torch itself copy windows
    x = torch.randn(2, 48, 48, 48).contiguous(memory_format=torch.channels_last)
    cpu, map_bytes = torch.device('cpu'), 2 * 48 * 48 * 4
    wide = peak_memory(evaluation_call(WideModule(module), x), cpu)
    merged = peak_memory(evaluation_call(MergedModule(module), x), cpu)
    module.eval()
    deployed = copy.deepcopy(module)
    deployed.switch_to_deploy()
    assert wide > 2 * 12 * 16 * map_bytes
    assert merged < 12 * 16 * map_bytes
    assert peak_memory(evaluation_call(MergedModule(deployed), x), cpu) < 12 * 16 * map_bytes
    wide_step = peak_memory(training_call(WideModule(module), x), cpu)
    assert peak_memory(training_call(MergedModule(module), x), cpu) < 0.8 * wide_step


def test_wrong_arguments_of_a_module_are_rejected() -> None:
    layer = ChannelRecurrentConv(2, 4, 3)
    with pytest.raises(ValueError, match='out_channels=0, allowed: an integer of at least 1'):
        RecurrentModule(layer, 0)
    with pytest.raises(TypeError, match='with_cp=1.*allowed: True or False'):
        RecurrentModule(layer, 4, with_cp=1)
