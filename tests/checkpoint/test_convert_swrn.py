"""The SWRN authors' networks, replayed through ``convert``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import convert
from mmrecur.errors import TransferError
from mmrecur.models.backbones import SWRN, RecNet
from mmrecur.models.layers import TemplateBank, template_banks
from tests import golden

NETWORKS = {
    'swrn_16_2_2': dict(depth=16, width=2, num_templates=2),
    'swrn_28_4_2': dict(depth=28, width=4, num_templates=2),
}


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.backbone = SWRN(out_indices=(2,), **kwargs)
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.out_channels[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def converted(name: str) -> tuple[golden.Golden, Classifier, object]:
    fixture = golden.load(name)
    model = Classifier(**NETWORKS[name])
    state, report = convert(fixture.state_dict, 'soft_sharing', model)
    model.load_state_dict(state, strict=True)
    return fixture, model, report


def gradient_norms(model: nn.Module, report) -> dict[str, float]:
    """Norm of the gradient of every source tensor; of the coefficients each row is one."""
    norms = {}
    parameters = dict(model.named_parameters())
    for target, source in report.copied.items():
        if target in parameters:
            norms[source] = parameters[target].grad.norm().item()
    for target, (sources, _) in report.transformed.items():
        grad = parameters[target].grad
        if target.endswith('coefficients'):
            norms.update(zip(sources, grad.norm(dim=1).tolist(), strict=True))
        else:  # the authors' bank hangs from the network first
            norms[target.replace('backbone.layer', 'bank_').replace('.bank.', '.')] = grad.norm().item()
    return norms


def authors_product(bank: TemplateBank) -> tuple[Tensor, ...]:
    """Layer by layer, summed as the authors do: sum over templates of coefficient times template."""
    templates = bank.templates.unflatten(0, (bank.num_templates, -1))
    return tuple((row.view(-1, 1, 1, 1, 1) * templates).sum(0) for row in bank.coefficients)


def training_step(
    name: str, dtype: torch.dtype = torch.float32, authors_order: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Output and the norms of gradients."""
    fixture, model, report = converted(name)
    model.train().to(dtype)
    if authors_order:
        for bank in template_banks(model).values():
            bank.forward = partial(authors_product, bank)
    output = model(fixture.input.to(dtype))
    output.square().mean().backward()
    return output.detach(), gradient_norms(model, report)


def gradient_error(norms: dict[str, float], expected: dict[str, float]) -> float:
    assert norms.keys() >= expected.keys()
    return max(abs(norms[key] - norm) / norm for key, norm in expected.items())


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_equal_the_authors(name: str) -> None:
    fixture, model, report = converted(name)
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    assert not report.initial
    assert all('bank' in key for key in report.unused)
    with torch.no_grad():
        assert golden.relative_error(model.eval()(fixture.input), fixture.outputs['eval_0']) < 1e-4
    output, norms = training_step(name)
    assert golden.relative_error(output, fixture.outputs['train_0']) < 1e-4
    assert output.square().mean().item() == pytest.approx(fixture.loss, rel=1e-4)
    if gradient_error(norms, fixture.grad_norms) < 1e-3:
        return
    # Two inputs of a ReLU in the 28 layers are zero to the seventh digit: on which side they come out is a
    # matter of the order of a sum, and their gradients hang on it. In the authors' order the gradients are
    # the fixture's; in ours they must be those of the same step in double precision.
    assert gradient_error(training_step(name, authors_order=True)[1], fixture.grad_norms) < 1e-4
    assert gradient_error(norms, training_step(name, torch.float64)[1]) < 1e-3


def test_report_accounts_for_every_key_once() -> None:
    fixture, model, report = converted('swrn_16_2_2')
    sources = [*report.copied.values(), *report.unused]
    sources += [source for group, _ in report.transformed.values() for source in group]
    assert sorted(sources) == sorted(fixture.state_dict)
    targets = [*report.copied, *report.transformed, *report.initial]
    assert sorted(targets) == sorted(model.state_dict())


def test_a_part_of_the_network_is_filled_too() -> None:
    fixture = golden.load('swrn_16_2_2')
    model = SWRN(16, 2, 2, out_indices=(0, 1))
    state, report = convert(fixture.state_dict, 'soft_sharing', model)
    assert 'layer2.bank.templates' in report.transformed
    assert 'bank_3.templates' in report.unused and 'lastact.0.weight' in report.unused
    assert 'classifier.weight' in report.unused
    assert torch.equal(state['conv1.weight'], fixture.state_dict['conv_3x3.weight'])


def test_misfits_are_named() -> None:
    fixture = golden.load('swrn_16_2_2')
    source = dict(fixture.state_dict)
    del source['stage_2.1.conv1.coefficients']
    with pytest.raises(TransferError, match='layer2.bank.templates'):
        convert(source, 'soft_sharing', SWRN(16, 2, 2))
    with pytest.raises(TransferError, match=r'layer1.bank.templates has shape \(32, '):
        convert(fixture.state_dict, 'soft_sharing', SWRN(16, 2, 1))
    other = RecNet(expansion=2, segments=(2,), steps=(2,))
    with pytest.raises(ValueError, match='a backbone of type RecNet, allowed: mmrecur.SWRN'):
        convert(fixture.state_dict, 'soft_sharing', other)


COUNTS = json.loads((Path(__file__).parents[1] / 'data' / 'parameters.json').read_text())
COUNTS = COUNTS['swrn (author implementation)']


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_are_the_authors(name: str) -> None:
    network, classes = name.removesuffix(' classes)').split(' (')
    depth, width, templates = map(int, network.split('-')[1:])
    with torch.device('meta'):
        model = SWRN(depth, width, templates)
    classifier = int(classes) * (model.out_channels[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == COUNTS[name]
