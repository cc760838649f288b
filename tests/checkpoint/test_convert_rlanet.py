"""The authors' RLA networks, replayed through ``convert``."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checkpoint import TransferError, convert
from mmrecur.models.backbones import RLAResNet
from mmrecur.models.layers import Bottleneck
from tests import golden

CLASSIFIERS = {
    'rla_resnet50': dict(depth=50, variant='v3'),
    'rla_resnet50_eca': dict(depth=50, variant='v3', attention='eca'),
    'rla_resnet101': dict(depth=101, variant='v3'),
    'rla_resnet50_residual': dict(depth=50, variant='v1'),
    'rlav2_resnet50': dict(depth=50, variant='v4'),
    'rlav3_resnet50': dict(depth=50, variant='v3'),
    'rlav4_resnet50': dict(depth=50, variant='v4'),
}


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.backbone = RLAResNet(with_hidden=True, out_indices=(3,), **kwargs)
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.out_channels[-1], 1000)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head.fc(self.backbone(x)[-1].mean((2, 3))),)


def gradient_norms(model: nn.Module, report) -> dict[str, float]:
    """Norm of the gradient of every source tensor, put together from the targets it went to."""
    squares: dict[str, float] = {}
    parameters = dict(model.named_parameters())
    sources = {target: source for target, source in report.copied.items()}
    sources.update({target: source[0][0] for target, source in report.transformed.items()})
    for target, source in sources.items():
        if target in parameters:
            square = parameters[target].grad.double().square().sum().item()
            squares[source] = squares.get(source, 0.0) + square
    return {source: math.sqrt(square) for source, square in squares.items()}


@dataclass
class Step:
    """A training step: outputs, loss, norms of the gradients by source key."""

    outputs: list[Tensor]
    loss: float
    norms: dict[str, float]

    @classmethod
    def of(cls, model: nn.Module, image: Tensor, report) -> Step:
        outputs = model.train()(image)
        loss = sum(output.square().mean() for output in outputs)
        loss.backward()
        return cls([o.detach() for o in outputs], loss.item(), gradient_norms(model, report))

    def output_error(self, fixture: golden.Golden) -> float:
        pairs = zip(self.outputs, (fixture.outputs[f'train_{i}'] for i in range(len(self.outputs))))
        return max(golden.relative_error(output, expected) for output, expected in pairs)

    def gradient_error(self, fixture: golden.Golden) -> float:
        expected = {key: norm for key, norm in fixture.grad_norms.items() if norm}
        assert expected.keys() <= self.norms.keys()
        # gradients that vanish in exact arithmetic are rounding noise on both sides
        floor = 1e-3 * max(expected.values())
        return max(abs(self.norms[k] - norm) / max(norm, floor) for k, norm in expected.items())


def replay(fixture: golden.Golden, model: nn.Module, report) -> None:
    model.eval()
    with torch.no_grad():
        for i, output in enumerate(model(fixture.input)):
            assert golden.relative_error(output, fixture.outputs[f'eval_{i}']) < 1e-4, f'eval_{i}'
    exact = copy.deepcopy(model).double()
    step = Step.of(model, fixture.input, report)
    assert step.loss == pytest.approx(fixture.loss, rel=1e-3)
    if step.output_error(fixture) < 1e-4 and step.gradient_error(fixture) < 1e-3:
        return
    # Batch statistics over a few pixels, 101 layers deep, amplify rounding until the order of a sum
    # shows in the fourth digit. No other difference is let pass: the network must be about as near to
    # the fixture as the fixture is to the same step in double precision ...
    truth = Step.of(exact, fixture.input.double(), report)
    assert step.output_error(fixture) < 2 * truth.output_error(fixture) < 1e-3
    assert step.gradient_error(fixture) < 2 * max(1e-3, truth.gradient_error(fixture)) < 5e-2
    # ... and, summed in the authors' order, be the fixture.
    again = concatenated(model)
    again.load_state_dict(exact.float().state_dict())
    step = Step.of(again, fixture.input, report)
    assert step.output_error(fixture) < 1e-4 and step.gradient_error(fixture) < 1e-3


@pytest.fixture(autouse=True)
def two_threads():
    """As many as the fixtures were made with: another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def concatenated(model: nn.Module) -> nn.Module:
    """The model with one product of ``cat(x, h)`` in each block instead of the sum of two."""
    model = copy.deepcopy(model)
    model.zero_grad()
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.forward = partial(concatenated_forward, block)
    return model


def concatenated_forward(
    block: Bottleneck,
    x: Tensor,
    h: Tensor | None,
    source: str = 'output',
    readout: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(x.size(0), block.conv1_hidden.in_channels, *x.shape[2:]) if h is None else h
    weight = torch.cat([block.conv1.weight, block.conv1_hidden.weight], dim=1)
    out = F.relu(block.bn1(F.conv2d(torch.cat([x, h], dim=1), weight)))
    out = F.relu(block.bn2(block.conv2(out)))
    out = block.bn3(block.conv3(out))
    assert source == 'output' and block.attention is None
    out = F.relu(out + (x if block.downsample is None else block.downsample(x)))
    return out, out if readout is None else readout(out)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier_equals_the_authors(name: str) -> None:
    fixture = golden.load(name)
    model = Classifier(**CLASSIFIERS[name])
    state, report = convert(fixture.state_dict, 'rlanet', model)
    model.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    assert not report.initial and not report.unused
    replay(fixture, model, report)


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
def test_detection_backbone_equals_the_authors(prefix: str) -> None:
    fixture = golden.load('det_rla_resnet50')
    model = RLAResNet(50, variant='v3')
    source = {prefix + key: value for key, value in fixture.state_dict.items()}
    state, report = convert({'state_dict': source}, 'rlanet', model)
    model.load_state_dict(state, strict=True)
    assert {key.removeprefix('module.').removeprefix('backbone.') for key in report.unused} == {
        f'stage_bns.3.2.{leaf}'
        for leaf in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    }
    if prefix:
        return
    replay(fixture, model, report)


def test_whole_detector_keeps_its_other_parts() -> None:
    source = golden.load('det_rla_resnet50').state_dict
    source = {f'backbone.{key}': value for key, value in source.items()}
    source['neck.fpn_convs.0.conv.weight'] = torch.zeros(1)
    detector = nn.Module()
    detector.backbone = RLAResNet(50)
    detector.neck = nn.Conv2d(8, 8, 1)
    state, report = convert(source, 'rlanet', detector)
    assert torch.equal(state['neck.weight'], detector.neck.weight)
    assert set(report.initial) == {'neck.weight', 'neck.bias'}
    assert 'neck.fpn_convs.0.conv.weight' in report.unused
    assert "variant='v3'" in report.notes[0]


def test_report_accounts_for_every_key_once() -> None:
    fixture = golden.load('rla_resnet50_eca')
    model = RLAResNet(50, attention='eca', out_indices=(0, 1))
    state, report = convert(fixture.state_dict, 'rlanet', model)
    targets = [*report.copied, *report.transformed, *report.initial]
    assert sorted(targets) == sorted(model.state_dict()) and len(set(targets)) == len(targets)
    sources = {s for group, _ in report.transformed.values() for s in group}
    accounted = [*report.copied.values(), *report.unused, *sources]
    assert sorted(accounted) == sorted(fixture.state_dict)
    assert list(state) == list(model.state_dict())
    assert 'conv1_hidden' in str(report) and 'transformed' in str(report)


def test_misfits_are_named() -> None:
    fixture = golden.load('rla_resnet50')
    source = dict(fixture.state_dict)
    del source['stages.1.0.conv2.weight']
    source['surplus.weight'] = torch.zeros(1)
    source['conv1.weight'] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(TransferError) as error:
        convert(source, 'rlanet', RLAResNet(50))
    for part in ('layer2.0.conv2.weight', 'surplus.weight', 'conv1.weight has shape (64, 3, 7, 7)'):
        assert part in str(error.value)
    _, report = convert(source, 'rlanet', RLAResNet(50), strict=False)
    assert 'layer2.0.conv2.weight' in report.initial and 'surplus.weight' in report.unused
    with pytest.raises(ValueError, match="source='timm', allowed: 'rlanet'"):
        convert(source, 'timm', RLAResNet(50))
    deployed = RLAResNet(50, base_channels=8)
    deployed.switch_to_deploy()
    with pytest.raises(ValueError, match='inference form'):
        convert(fixture.state_dict, 'rlanet', deployed)
