"""The authors' ResNet-Shared networks, replayed through ``convert``."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.checkpoint import Report, TransferError, convert
from mmrecur.models.backbones import ResNetShared
from tests import golden

NETWORKS = {
    'resnet34_s48u1': dict(type='ResNetShared', depth=34, shared_rank=48, unique_rank=1, bases=2),
    'resnet50_shared': dict(type='ResNetShared', depth=50, share='single'),
    'resnet50_shared_pp': dict(type='ResNetShared', depth=50, share='double'),
    'cifar10_resnet32_s16u1_double': dict(type='ResNetShared', depth=32, bases=2),
    'cifar10_resnet56_s16u1': dict(type='ResNetShared', depth=56, bases=1),
    'mobilenetv2_shared': dict(type='MobileNetV2Shared'),
    'cifar100_densenet121_s16u1': dict(type='DenseNetShared', last_basis='third'),
    'cifar100_resnet34_s32u1': dict(type='ResNetShared', depth=34, stem='cifar'),
}


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, num_classes: int, **backbone) -> None:
        super().__init__()
        self.backbone = MODELS.build({**backbone, 'type': 'mmrecur.' + backbone['type']})
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.out_channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def classifier_of(fixture: golden.Golden, **options) -> Classifier:
    classes = fixture.outputs['eval_0'].size(1)
    return Classifier(classes, **{**NETWORKS[fixture.name], **options})


def source_gradients(model: nn.Module, report: Report) -> dict[str, float]:
    """Norms of the gradients by every key that the source has for a parameter."""
    parameters = dict(model.named_parameters())
    norms = {
        source: parameters[target].grad.double().norm().item()
        for target, source in report.copied.items()
        if target in parameters
    }
    for key, why in report.unused.items():
        if match := re.fullmatch('the same tensor as (.*)', why):
            norms[key] = norms[match[1]]
    return norms


def training_step(model: nn.Module, image: Tensor) -> tuple[Tensor, float]:
    model.zero_grad()
    output = model.train()(image)
    loss = output.square().mean()
    loss.backward()
    return output.detach(), loss.item()


def gradient_error(norms: dict[str, float], expected: dict[str, float | None]) -> float:
    expected = {key: norm for key, norm in expected.items() if norm}
    assert expected.keys() <= norms.keys()
    # gradients that vanish in exact arithmetic are rounding noise on both sides
    floor = 1e-3 * max(expected.values())
    return max(abs(norms[key] - norm) / max(norm, floor) for key, norm in expected.items())


@pytest.mark.parametrize('name', NETWORKS)
def test_network_equals_the_authors(name: str) -> None:
    fixture = golden.load(name)
    model = classifier_of(fixture)
    state, report = convert(fixture.state_dict, 'net_rl2', model)
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        assert golden.relative_error(model(fixture.input), fixture.outputs['eval_0']) < 1e-4
        deployed = copy.deepcopy(model)
        for form in ('dense', 'factorized'):
            deployed = copy.deepcopy(model)
            deployed.backbone.switch_to_deploy(form=form)
            assert golden.relative_error(deployed(fixture.input), fixture.outputs['eval_0']) < 1e-4
    output, loss = training_step(model, fixture.input)
    print(name, golden.relative_error(output, fixture.outputs['train_0']), loss / fixture.loss - 1,
          gradient_error(source_gradients(model, report), fixture.grad_norms))
    assert loss == pytest.approx(fixture.loss, rel=1e-4)
    assert golden.relative_error(output, fixture.outputs['train_0']) < 1e-4
    assert gradient_error(source_gradients(model, report), fixture.grad_norms) < 1e-3
