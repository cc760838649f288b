"""The authors' RLA networks, replayed through ``convert``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import convert
from mmrecur.errors import TransferError
from mmrecur.models.backbones import RLAResNet
from tests import golden
from tests.helpers.transfer import replay

CLASSIFIERS = {
    'rla_resnet50': dict(depth=50, variant='v3'),
    'rla_resnet50_eca': dict(depth=50, variant='v3', attention='eca'),
    'rla_resnet101': dict(depth=101, variant='v3'),
    'rla_resnet50_residual': dict(depth=50, variant='v1'),
    'rlav2_resnet50': dict(depth=50, variant='v4'),
    'rlav3_resnet50': dict(depth=50, variant='v3'),
    'rlav4_resnet50': dict(depth=50, variant='v4'),
    'rlaus_resnet50': dict(depth=50, variant='v1', share=None),
    'rlarh_resnet50': dict(depth=50, variant='v3', exchange=False),
    'rlalstm_resnet50': dict(depth=50, variant='v3', cell='lstm'),
    'rlav1p_resnet50': dict(depth=50, variant='v3', post_act=True),
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


def test_classifiers_become_backbones_of_detectors() -> None:
    """Remove the parameters that only a classifier reads."""
    source = golden.load('rlaus_resnet50').state_dict
    state, report = convert(source, 'rlanet', RLAResNet(50, share=None))
    last = {key for key in source if key.startswith('stages.3.2.') and ('rla' in key or 'rec' in key)}
    last.add('stages.3.2.conv_out.weight')
    assert set(report.unused) == last | {key for key in source if key.startswith(('bn2.', 'fc.'))}
    assert not report.initial and not report.notes
    # a detector does not use a state that its blocks do not read
    source = golden.load('rlarh_resnet50').state_dict
    state, report = convert(source, 'rlanet', RLAResNet(50, rla_channels=0))
    assert torch.equal(state['layer3.5.conv1.weight'], source['stages.2.5.conv1.weight'])
    assert report.unused['recurrent_convs.0.weight'] == 'the model has no recurrent path (rla_channels=0)'
    assert not report.initial and not report.transformed


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
