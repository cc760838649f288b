"""Template banks against Equation 1 written out, and the weights that they keep in evaluation."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmrecur.models.layers import SharedConv, TemplateBank, layer_similarity
from mmrecur.models.layers.template_bank import initial_coefficients
from mmrecur.models.layers.template_fit import fit_templates

SHAPE = (6, 4, 3, 3)


def make(num_layers: int = 5, num_templates: int = 3, **kwargs) -> TemplateBank:
    torch.manual_seed(0)
    return TemplateBank(num_layers, num_templates, SHAPE, **kwargs)


def equation_1(bank: TemplateBank, index: int) -> Tensor:
    """Sum over templates of coefficient times template."""
    coefficients = bank.coefficients[index if bank.rows is None else bank.rows[index]]
    templates = bank.templates.chunk(bank.num_templates)
    weight = sum(a * template for a, template in zip(coefficients, templates, strict=True))
    return weight if bank.rows is None else bank.row_scales[index] * weight


@pytest.mark.parametrize('rows', [None, (0, 1, 0, 2, 1)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('together', [True, False])
def test_weights_and_gradients_are_those_of_equation_1(rows, layout, together: bool) -> None:
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
    conv = SharedConv(bank, 1, **options, bias=nn.Parameter(torch.randn(shape[0])))
    x = torch.randn(2, 2 * shape[1], *[9] * dims)
    plain = getattr(nn, f'Conv{dims}d')(2 * shape[1], shape[0], shape[2:], **options)
    plain.weight.data = equation_1(bank, 1).detach()
    plain.bias.data = conv.bias.data
    torch.testing.assert_close(conv(x), plain(x))
    assert torch.equal(conv.materialise()(x), conv.eval()(x))
    assert set(conv.state_dict()) == {'bias'}


def generations(bank: TemplateBank) -> list[int]:
    """Counts the matrix products from now on."""
    counts = [0]
    product = bank._product

    def counting(layers: slice) -> tuple[Tensor, ...]:
        counts[0] += 1
        return product(layers)

    bank._product = counting
    return counts


def test_evaluation_generates_once_and_training_every_time() -> None:
    bank = make().eval()
    counts = generations(bank)
    with torch.no_grad():
        first = bank()
        assert bank()[2] is first[2] and bank.weight(3) is first[3] and counts == [1]
    bank()  # with gradients: a graph serves one backward pass
    bank()
    assert counts == [3]
    bank.train()()
    bank()
    assert counts == [5]
    bank.requires_grad_(False).eval()  # a frozen stage
    bank()
    bank()
    assert counts == [6]


def step(bank: TemplateBank) -> None:
    optimiser = torch.optim.SGD(bank.parameters(), 0.1)
    with torch.enable_grad():
        sum(w.square().sum() for w in bank()).backward()
    optimiser.step()


def fused_step(bank: TemplateBank) -> None:
    """Fused optimizers write without a new version of the tensor."""
    optimiser = torch.optim.SGD(bank.parameters(), 0.1, fused=True)
    with torch.enable_grad():
        sum(bank.weight(i).square().sum() for i in range(5)).backward()
    optimiser.step()


def load(bank: TemplateBank) -> None:
    bank.load_state_dict({k: v + 1 for k, v in bank.state_dict().items()})


def replace(bank: TemplateBank) -> None:
    bank.coefficients = nn.Parameter(torch.randn(5, 3))


def swap_data(bank: TemplateBank) -> None:
    bank.templates.data = torch.randn_like(bank.templates)


def write_behind(bank: TemplateBank) -> None:
    """As MMEngine's EMA hook swaps weights, before the loop sets the mode."""
    bank.templates.data.copy_(torch.randn_like(bank.templates))
    bank.eval()


@pytest.mark.parametrize(
    'change', [step, fused_step, load, replace, swap_data, write_behind, nn.Module.double]
)
def test_kept_weights_follow_every_change(change) -> None:
    bank = make().eval()
    with torch.no_grad():
        before = bank()
        change(bank)
        after = bank()
        assert before[0].dtype != after[0].dtype or not torch.equal(before[0], after[0])
        for index, weight in enumerate(after):
            torch.testing.assert_close(weight, equation_1(bank, index))


def test_kept_weights_serve_inference_mode_and_gradients_of_images() -> None:
    bank = make().requires_grad_(False).eval()
    with torch.inference_mode():
        bank()
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    SharedConv(bank, 1)(x).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, equation_1(bank, 1)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_copies_are_their_own() -> None:
    bank = make().eval()
    with torch.no_grad():
        bank()
        buffer = io.BytesIO()
        torch.save(bank, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(bank), torch.load(buffer, weights_only=False)):
            other.templates.mul_(2)
            torch.testing.assert_close(other()[0], 2 * bank()[0])
        average = ExponentialMovingAverage(nn.Sequential(bank), 0.5)
        bank.templates.zero_()
        average.update_parameters(nn.Sequential(bank))
        average.update_parameters(nn.Sequential(bank))
        torch.testing.assert_close(average.module[0]()[0], 0 * bank()[0])


def test_parameters_can_be_given_for_one_call() -> None:
    bank = make().eval()
    with torch.no_grad():
        bank()
        for factor in (2.0, 3.0):
            given = {'templates': factor * bank.templates}
            drawn = torch.func.functional_call(bank, given, ())
            torch.testing.assert_close(drawn[1], factor * bank()[1])


def test_autocast_rounds_the_weights_once() -> None:
    bank = make()
    exact = bank.eval()()
    for train in (True, False):
        bank.train(train)
        with torch.autocast('cpu', torch.bfloat16), torch.set_grad_enabled(train):
            for weight, expected in zip(bank(), exact):
                assert torch.equal(weight, expected.bfloat16())
            assert bank.weight(2).dtype == torch.bfloat16
        with torch.no_grad():
            assert bank()[0].dtype == torch.float32  # kept for another precision, not for this one


def test_similarity_is_the_cosine_without_its_sign() -> None:
    coefficients = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    half = 0.5**0.5
    expected = torch.tensor(
        [[1, 1, half, 0], [1, 1, half, 0], [half, half, 1, half], [0, 0, half, 1]]
    )
    torch.testing.assert_close(layer_similarity(coefficients), expected)
    bank = make(4, 2, rows=(0, 0, 1, 2))
    bank.row_scales.data = torch.tensor([1.0, -3.0, 1.0, 2.0])
    bank.coefficients.data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(bank.similarity(), expected)


def test_initialisations_are_those_of_appendix_b() -> None:
    torch.manual_seed(0)
    wide = initial_coefficients(3, 5, 'orthogonal')
    torch.testing.assert_close(wide @ wide.t(), torch.eye(3))
    tall = initial_coefficients(5, 3, 'orthogonal')
    torch.testing.assert_close(tall.t() @ tall, torch.eye(3))
    assert torch.equal(initial_coefficients(4, 4, 'identity'), torch.eye(4))
    sparse = initial_coefficients(1000, 6, 'sparse')
    assert ((sparse == 0).sum(1) == 3).all()
    assert sparse.square().sum(1).mean().item() == pytest.approx(1, abs=0.1)
    # with orthonormal rows the weights start as Kaiming initialises plain ones
    bank = TemplateBank(4, 4, (64, 32, 3, 3))
    assert bank()[1].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize('num_templates', [1, 2, 3, 4, 6])
def test_fitted_templates_are_the_nearest(num_templates: int) -> None:
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
    for unfit in (singular, nearly):  # templates for these would be huge and cancel
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


def test_layers_that_a_bank_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match='index=5, allowed: an integer from 0 to 4'):
        SharedConv(make(), 5)
    with pytest.raises(ValueError, match=r'weight_shape=\(3, 4\), allowed: 3, 4 or 5 sizes'):
        SharedConv(TemplateBank(2, 2, (3, 4)), 0)


def test_plain_layers_have_full_precision_also_if_made_under_autocast() -> None:
    conv = SharedConv(make().eval(), 1)
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        conv(torch.zeros(1, 4, 5, 5))  # a kept weight in half precision
        plain = conv.materialise()
    torch.testing.assert_close(plain.weight, conv.template_bank.weight(1))


def test_double_precision_stays_under_autocast() -> None:
    conv = SharedConv(make().double(), 0)
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(torch.zeros(1, 4, 5, 5).double()).dtype is torch.float64  # as of a plain convolution
