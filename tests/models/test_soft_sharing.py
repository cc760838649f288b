"""Template banks in networks of other libraries."""

from __future__ import annotations

import copy

import pytest
import torch
from mmpretrain.models import ResNet
from torch import Tensor, nn
from torch.nn.utils import prune

from mmrecur.models.backbones import SWRN
from mmrecur.models.layers import TemplateBank, TemplateConv2d, materialise_convs, share_convs, template_banks
from mmrecur.models.shortest_path import ShortestPathNet
from tests.helpers import randomise_norms


def resnet() -> nn.Module:
    """Return a narrow ResNet-18 of mmpretrain."""
    torch.manual_seed(0)
    model = ResNet(18, stem_channels=8, base_channels=8, out_indices=(0, 1, 2, 3))
    randomise_norms(model)
    return model


class Dilated(nn.Module):
    """Convolutions with weights of one shape and different options."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, bias=False),
            nn.Conv2d(16, 8, 3, padding=2, dilation=2, groups=2, padding_mode='reflect'),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[2](self.layers[1](self.layers[0](x)))
        return self.layers[3](torch.cat([x, x], dim=1))


def image(channels: int = 3, size: int = 33) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('num_templates', ['per_layer', 9])
def test_one_template_per_layer_keeps_the_outputs(num_templates) -> None:
    model = resnet()
    model.eval()
    with torch.no_grad():
        expected = model(image())
        banks = share_convs(model, num_templates, from_weights=True)
        outputs = model(image())
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)
    # the 3x3 convolutions of each width that have as many input as output channels
    assert {name: bank.num_layers for name, bank in banks.items()} == {
        'layer1.0.conv1': 4,
        'layer2.0.conv2': 3,
        'layer3.0.conv2': 3,
        'layer4.0.conv2': 3,
    }
    assert [bank.num_templates for bank in banks.values()] == [4, 3, 3, 3]


def test_layers_of_one_shape_keep_their_other_options() -> None:
    torch.manual_seed(0)
    model = Dilated()
    expected = model(image(8))
    share_convs(model, 'per_layer', from_weights=True)
    assert sum(isinstance(m, TemplateConv2d) for m in model.modules()) == 3
    torch.testing.assert_close(model(image(8)), expected, rtol=1e-4, atol=1e-5)
    assert set(dict(model.named_parameters())) == {
        'layers.0.bias',
        'layers.0.bank.templates',
        'layers.0.bank.coefficients',
        'layers.3.bias',
    }


def test_gradients_follow_equation_1() -> None:
    """Compare gradients with a network whose weights are generated step by step."""
    model = resnet().double()
    share_convs(model, 2, groups=['layer[12].*.conv2', ['layer3.0.conv2', 'layer3.1.*']][1:])
    bank = model.layer3[0].conv2.bank
    by_hand = copy.deepcopy(model)
    names = ['layer3.0.conv2', 'layer3.1.conv1', 'layer3.1.conv2']
    templates = by_hand.layer3[0].conv2.bank.templates.chunk(2)
    coefficients = by_hand.layer3[0].conv2.bank.coefficients
    for index, name in enumerate(names):
        weight = sum(a * template for a, template in zip(coefficients[index], templates))
        layer = by_hand.get_submodule(name)
        layer.forward = lambda x, layer=layer, weight=weight: layer._rule[0]._conv_forward(x, weight, None)
    for network in (model, by_hand):
        sum(output.square().mean() for output in network(image().double())).backward()
    for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert bank.coefficients.grad.abs().sum() > 0


def test_state_dict_loads_and_materialised_convolutions_are_equivalent() -> None:
    model, other = resnet(), resnet()
    share_convs(model, 2)
    share_convs(other, 2)
    assert [b.num_templates for b in template_banks(model).values()] == [2, 2, 2, 2]
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        model.eval()
        other.eval()
        expected = model(image())
        outputs = materialise_convs(other)(image())
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, (TemplateConv2d, TemplateBank)) for m in other.modules())
    plain = resnet()
    plain.load_state_dict(other.state_dict())


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointed_layers_get_the_same_gradients(reentrant: bool) -> None:
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
        share_convs(model, 2)
        x = image(4, 9).requires_grad_()
        for layer in model:
            x = (
                torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
                if recompute
                else layer(x)
            )
        x.square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected)


def test_traced_and_compiled_networks_are_equivalent() -> None:
    model = resnet()
    model.eval()
    share_convs(model, 2)
    with torch.no_grad():
        expected = model(image())
        for form in (torch.fx.symbolic_trace(model), torch.compile(model, backend='aot_eager')):
            for output, reference in zip(form(image()), expected, strict=True):
                torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_templates=0), "num_templates=0, allowed: an integer of at least 1, or 'per_layer'"),
        (dict(num_templates='all'), "num_templates='all', allowed: .*'per_layer'"),
        (
            dict(num_templates=3, coefficient_init='identity', groups=['layer2.1.*', 'layer1.*.conv?']),
            'with 4 layers and 3 templates',
        ),
        (dict(num_templates=2, groups=[['layer1.*', 'layer9.*']]), r"'layer9.\*' matches no convolution"),
        (dict(num_templates=2, groups='layer1.*'), r"groups='layer1.\*', allowed: None, or a list"),
        (dict(num_templates=2, groups=[3]), r'groups=\[3\], allowed: None, or a list'),
        (dict(num_templates=2, groups=['layer9.*']), r"'layer9.\*' matches no .*layer1.\*.conv1"),
        (dict(num_templates=2, groups=['layer2.*.conv*']), 'different shapes'),
        (
            dict(num_templates=2, groups=['layer1.*.conv1', 'layer1.0.*']),
            'groups: layer1.0.conv1 in two groups, allowed: in one',
        ),
        (dict(num_templates=2, from_weights=1), 'from_weights=1'),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(arguments: dict, message: str) -> None:
    model = resnet()
    with pytest.raises((ValueError, TypeError), match=message):
        share_convs(model, **arguments)
    assert not template_banks(model)


def test_single_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match='module=Conv2d.*allowed: a network'):
        share_convs(nn.Conv2d(3, 3, 3), 2)


def test_computed_weights_are_left_alone() -> None:
    normed = [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)) for _ in range(2)]
    pruned = [prune.l1_unstructured(nn.Conv2d(3, 3, 3), 'weight', 0.5) for _ in range(2)]
    turned = [nn.ConvTranspose2d(3, 3, 3) for _ in range(2)]
    model = nn.Sequential(*normed, *pruned, *turned, nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    assert list(share_convs(model, 1)) == ['6']
    assert [*model[:6]] == [*normed, *pruned, *turned]
    with pytest.raises(ValueError, match="'2' matches no convolution that can share"):
        share_convs(model, 1, groups=['2'])


def test_frozen_convolutions_get_a_frozen_bank() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, bias=False) for _ in range(2)))
    model.requires_grad_(False)
    share_convs(model, 2, from_weights=True)
    assert not any(p.requires_grad for p in model.parameters())


def test_networks_that_own_their_banks_can_be_materialised() -> None:
    torch.manual_seed(0)
    for model, x in (
        (SWRN(16, 1, num_templates=2), image(3, 9)),
        (ShortestPathNet(2, num_layers=3, channels=4), torch.rand(2, 2, 9, 9)),
    ):
        model.eval()
        with torch.no_grad():
            expected = model(x)
            outputs = materialise_convs(model)(x)
        for output, reference in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, reference)
        assert not any(isinstance(m, TemplateConv2d) for m in model.modules())
