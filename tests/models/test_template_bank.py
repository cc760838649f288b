"""Template banks compared with Equation 1 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers import TemplateBank, TemplateConv2d, layer_similarity, share_convs
from mmrecur.models.layers.template_bank.coefficients import initial_coefficients
from mmrecur.models.layers.template_bank.fit import fit_templates

SHAPE = (6, 4, 3, 3)


def make(num_layers: int = 5, num_templates: int = 3, **kwargs) -> TemplateBank:
    torch.manual_seed(0)
    return TemplateBank(num_layers, num_templates, SHAPE, **kwargs)


def equation_1(bank: TemplateBank, index: int) -> Tensor:
    """Return the weight of a layer as the sum of coefficients times templates."""
    coefficients = bank.coefficients[index if bank.rows is None else bank.rows[index]]
    templates = bank.templates.chunk(bank.num_templates)
    weight = sum(a * template for a, template in zip(coefficients, templates, strict=True))
    return weight if bank.rows is None else bank.row_scales[index] * weight


@pytest.mark.parametrize('rows', [None, (0, 1, 0, 2, 1)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('together', [True, False])
def test_weights_and_gradients_follow_equation_1(rows, layout, together: bool) -> None:
    bank = make(rows=rows).double().to(memory_format=layout)
    if rows is not None:
        bank.row_scales.data = torch.tensor([1.0, -1.0, 0.5, 2.0, 1.5]).double()
    probes = torch.randn(5, *SHAPE).double()
    results = []
    for weights in (
        bank() if together else [bank.weight(i) for i in range(5)],
        [equation_1(bank, i) for i in range(5)],
    ):
        bank.zero_grad()
        sum((weight.square() * probe).sum() for weight, probe in zip(weights, probes)).backward()
        results.append([*weights, *(p.grad.clone() for p in bank.parameters())])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    assert all(w.is_contiguous(memory_format=layout) for w in bank())


@pytest.mark.parametrize('shape', [(6, 4, 5), (6, 2, 3, 3), (4, 2, 3, 1, 2)])
def test_convolutions_of_any_dimension_equal_torchs(shape: tuple[int, ...]) -> None:
    dims = len(shape) - 2
    bank = TemplateBank(2, 2, shape)
    options = dict(stride=2, padding=1, dilation=1, groups=2, padding_mode='circular')
    conv = TemplateConv2d(bank, 1, **options, bias=nn.Parameter(torch.randn(shape[0])))
    x = torch.randn(2, 2 * shape[1], *[9] * dims)
    plain = getattr(nn, f'Conv{dims}d')(2 * shape[1], shape[0], shape[2:], **options)
    plain.weight.data = equation_1(bank, 1).detach()
    plain.bias.data = conv.bias.data
    torch.testing.assert_close(conv(x), plain(x))
    assert torch.equal(conv.materialise()(x), conv.eval()(x))
    assert set(conv.state_dict()) == {'bias'}


@pytest.mark.parametrize('rows', [None, (0, 1, 0, 2, 1)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_function_transforms_work(rows, layout) -> None:
    """Compare first and second derivatives and vmap with Equation 1."""
    bank = make(rows=rows).double().to(memory_format=layout)
    parameters = {name: p.detach() for name, p in bank.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}
    probe = torch.randn(bank.num_layers, *SHAPE).double()

    def drawn(given: dict[str, Tensor]) -> Tensor:
        return torch.stack(torch.func.functional_call(bank, given, ()))

    def written(given: dict[str, Tensor]) -> Tensor:
        rows = range(5) if bank.rows is None else bank.rows
        scales = given.get('row_scales', torch.ones(5).double())
        templates = given['templates'].unflatten(0, (3, -1))
        combined = [torch.einsum('k,k...->...', given['coefficients'][row], templates) for row in rows]
        return torch.stack([scale * weight for scale, weight in zip(scales, combined)])

    def results(weights: Callable[[dict[str, Tensor]], Tensor]) -> list[Any]:
        def loss(given: dict[str, Tensor]) -> Tensor:
            return (weights(given).pow(3) * probe).sum()

        gradient = torch.func.grad(loss)
        batch = {name: torch.stack([p, 2 * p], dim=-1) for name, p in parameters.items()}
        return [
            gradient(parameters),
            torch.func.jvp(loss, (parameters,), (directions,)),
            torch.func.jvp(gradient, (parameters,), (directions,)),
            torch.func.vmap(gradient, in_dims=-1)(batch),
            torch.func.hessian(lambda c: loss({**parameters, 'coefficients': c}))(parameters['coefficients']),
        ]

    torch.testing.assert_close(results(drawn), results(written))
    bank.requires_grad_()
    leaves = tuple(bank.parameters())
    assert torch.autograd.gradgradcheck(
        lambda *given: drawn(dict(zip(parameters, given, strict=True)))[:, :2, :1], leaves
    )


def test_second_derivatives_of_a_network() -> None:
    """Compare Hessian-vector products with those of a network without banks."""
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).double()
    share_convs(model, 2)
    x = torch.randn(1, 3, 4, 4).double()
    parameters = dict(model.named_parameters())
    directions = tuple(torch.randn_like(p) for p in parameters.values())

    def shared(*given: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(parameters, given, strict=True)), (x,)).pow(3).sum()

    def plain(*given: Tensor) -> Tensor:
        named, y = dict(zip(parameters, given, strict=True)), x
        templates = named['0.bank.templates'].unflatten(0, (2, 3))
        for i, row in enumerate(named['0.bank.coefficients']):
            weight = row[0] * templates[0] + row[1] * templates[1]
            y = F.conv2d(y, weight, named[f'{i}.bias'], padding=1)
        return y.pow(3).sum()

    given = tuple(p.detach() for p in parameters.values())
    ours, expected = (torch.autograd.functional.hvp(f, given, directions) for f in (shared, plain))
    torch.testing.assert_close(ours, expected)


def test_gradients_work_after_inference_mode() -> None:
    bank = make().requires_grad_(False).eval()
    with torch.inference_mode():
        bank()
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    TemplateConv2d(bank, 1)(x).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, equation_1(bank, 1)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_meta_bank_loads_a_state_dict() -> None:
    rows = (0, 1, 0, 2, 1)
    with torch.device('meta'):
        empty = make(rows=rows)
    bank = make(rows=rows)
    empty.to_empty(device='cpu').load_state_dict(bank.state_dict())
    for ours, expected in zip(empty(), bank(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize('rows', [None, (0, 1, 0, 2, 1)])
@pytest.mark.parametrize('training', [True, False])
def test_autocast_rounds_weights_only_once(rows, training: bool) -> None:
    bank = make(rows=rows).train(training)
    x, exact = torch.randn(1, 4, 5, 5), bank()
    with torch.autocast('cpu', torch.bfloat16):
        for index, weight in enumerate(bank()):
            assert torch.equal(weight, exact[index])
            expected = F.conv2d(x, weight.detach())
            assert expected.dtype is torch.bfloat16
            assert torch.equal(TemplateConv2d(bank, index)(x, weight), expected)
        for index in range(5):
            own = bank.weight(index)
            torch.testing.assert_close(own, exact[index], rtol=1e-5, atol=1e-6)  # not rounded to 8 bits


def test_similarity_is_the_absolute_cosine() -> None:
    coefficients = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    half = 0.5**0.5
    expected = torch.tensor([[1, 1, half, 0], [1, 1, half, 0], [half, half, 1, half], [0, 0, half, 1]])
    torch.testing.assert_close(layer_similarity(coefficients), expected)
    bank = make(4, 2, rows=(0, 0, 1, 2))
    bank.row_scales.data = torch.tensor([1.0, -3.0, 1.0, 2.0])
    bank.coefficients.data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(bank.similarity(), expected)


def test_initialisations_follow_appendix_b() -> None:
    torch.manual_seed(0)
    wide = initial_coefficients(3, 5, 'orthogonal')
    torch.testing.assert_close(wide @ wide.t(), torch.eye(3))
    tall = initial_coefficients(5, 3, 'orthogonal')
    torch.testing.assert_close(tall.t() @ tall, torch.eye(3))
    assert torch.equal(initial_coefficients(4, 4, 'identity'), torch.eye(4))
    sparse = initial_coefficients(1000, 6, 'sparse')
    assert ((sparse == 0).sum(1) == 3).all()
    assert sparse.square().sum(1).mean().item() == pytest.approx(1, abs=0.1)
    # with orthonormal rows, weights have the standard deviation of Kaiming initialisation
    bank = TemplateBank(4, 4, (64, 32, 3, 3))
    assert bank()[1].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize('num_templates', [1, 2, 3, 4, 6])
def test_fit_is_the_best_approximation(num_templates: int) -> None:
    torch.manual_seed(0)
    weights = torch.randn(4, *SHAPE)
    given = initial_coefficients(4, num_templates, 'orthogonal')
    coefficients, templates, error = fit_templates(weights, num_templates, given)
    made = torch.einsum('lk,k...->l...', coefficients, templates)
    values = torch.linalg.svdvals(weights.flatten(1))
    left_out = (values[num_templates:].norm() / values.norm()).item()
    assert ((made - weights).norm() / weights.norm()).item() == pytest.approx(left_out, abs=1e-6)
    assert error == pytest.approx(left_out, abs=1e-6)
    if num_templates >= 4:
        assert torch.equal(coefficients, given)
    singular = torch.zeros(4, num_templates)
    nearly = torch.ones(4, num_templates) + 1e-5 * torch.randn(4, num_templates)
    for unfit in (singular, nearly):  # these would need large templates that cancel each other
        coefficients, templates, again = fit_templates(weights, num_templates, unfit)
        assert again == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_templates=0), 'num_templates=0, allowed: an integer of at least 1'),
        (dict(coefficient_init='zeros'), "coefficient_init='zeros', allowed: 'orthogonal', 'identity', 'sp"),
        (dict(coefficient_init='identity'), "coefficient_init='identity' with 5 layers and 3 templates"),
        (dict(rows=(0, 1, 2)), r'rows=\(0, 1, 2\), allowed: None or 5 integers'),
        (dict(rows=(0, 2, 0, 2, 0)), 'without a gap'),
        (dict(rows=[]), r'rows=\[\], allowed: None or 5 integers'),
        (dict(rows='abcde'), "rows='abcde', allowed: None or 5 integers"),
        (dict(rows=3), 'rows=3, allowed: None or 5 integers'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize('shape', [(), (3,), (3, 0, 3, 3), (3, 2.0, 3, 3)])
def test_wrong_shapes_are_named(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r'weight_shape=\(.*\), allowed: integers'):
        TemplateBank(2, 2, shape)


def test_index_and_weight_shape_are_checked() -> None:
    with pytest.raises(ValueError, match='index=5, allowed: an integer from 0 to 4'):
        TemplateConv2d(make(), 5)
    with pytest.raises(ValueError, match=r'weight_shape=\(3, 4\), allowed: 3, 4 or 5 sizes'):
        TemplateConv2d(TemplateBank(2, 2, (3, 4)), 0)


def test_materialise_keeps_full_precision_under_autocast() -> None:
    conv = TemplateConv2d(make().eval(), 1)
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        conv(torch.zeros(1, 4, 5, 5))
        plain = conv.materialise()
    torch.testing.assert_close(plain.weight, conv.template_bank.weight(1))


def test_autocast_keeps_double_precision() -> None:
    conv = TemplateConv2d(make().double(), 0)
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(torch.zeros(1, 4, 5, 5).double()).dtype is torch.float64  # as of a plain convolution
