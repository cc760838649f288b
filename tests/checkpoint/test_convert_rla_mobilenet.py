"""The authors' RLA-MobileNetV2, replayed through ``convert``."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmrecur.checkpoint import convert
from mmrecur.errors import TransferError
from mmrecur.models.backbones import RLAMobileNetV2
from tests import golden
from tests.helpers.rla_mobilenet import reference_forward
from tests.helpers.transfer import assert_complete, gradient_norms, replay

W_R = [f'recurrent_dsconvs.{stage}.weight' for stage in range(5)]


class Classifier(nn.Module):
    """Laid out as an mmpretrain classifier: ``backbone``, pooling, ``head.fc``."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.backbone = RLAMobileNetV2(out_indices=(7,), **kwargs)
        self.head = nn.Module()
        self.head.fc = nn.Linear(self.backbone.out_channels[-1], 1000)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head.fc(self.backbone(x)[-1].mean((2, 3))),)


def fixture_with_one_w_r() -> golden.Golden:
    """In the authors' network the five W_r are one tensor, which keeps the value of its last name."""
    fixture = golden.load('dsrla_mobilenetv2')
    for key in W_R:
        fixture.state_dict[key] = fixture.state_dict[W_R[-1]]
    return fixture


def test_classifier_equals_the_authors() -> None:
    fixture = fixture_with_one_w_r()
    model = Classifier(share='network')
    state, report = convert(fixture.state_dict, 'rlanet', model)
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    assert_complete(report, fixture.state_dict, model, splits=True)
    assert not report.initial and set(report.unused) == set(W_R[1:])
    replay(fixture, model, report)
    model.eval()
    with torch.no_grad():
        model.backbone.switch_to_deploy()
        assert golden.relative_error(model(fixture.input)[0], fixture.outputs['eval_0']) < 1e-4


def test_training_step_equals_the_authors_where_rounding_is_no_matter() -> None:
    fixture = fixture_with_one_w_r()
    model = Classifier(share='network')
    state, report = convert(fixture.state_dict, 'rlanet', model)
    model.load_state_dict(state)
    concatenated = copy.deepcopy(model).double()
    concatenated.backbone.forward = partial(reference_forward, concatenated.backbone)
    images = fixture.input.double()
    ours, theirs = (
        golden.Step.of(m, images, lambda m: gradient_norms(m, report)) for m in (model.double(), concatenated)
    )
    torch.testing.assert_close(ours.outputs[0], theirs.outputs[0])
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-6, abs=1e-9)


def test_one_w_r_of_each_stage_computes_the_same() -> None:
    fixture = fixture_with_one_w_r()
    model = Classifier().eval()
    state, report = convert(fixture.state_dict, 'rlanet', model)
    assert_complete(report, fixture.state_dict, model, splits=True)
    model.load_state_dict(state)
    with torch.no_grad():
        assert golden.relative_error(model(fixture.input)[0], fixture.outputs['eval_0']) < 1e-4


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
@pytest.mark.parametrize('sharing', ['stage', 'network'])
def test_detection_backbone_leaves_the_end_out(prefix: str, sharing: str) -> None:
    fixture = fixture_with_one_w_r()
    classifier = Classifier(share='network')
    classifier.load_state_dict(convert(fixture.state_dict, 'rlanet', classifier)[0])
    model = RLAMobileNetV2(share=sharing)
    source = {prefix + key: value for key, value in fixture.state_dict.items()}
    state, report = convert({'state_dict': source}, 'rlanet', model)
    bare = {key.removeprefix('module.') for key in source}
    assert_complete(report, bare, model, splits=True)
    left = {key.removeprefix('module.').removeprefix('backbone.') for key in report.unused}
    end = ('conv2.', 'bn2.', 'classifier.', 'conv_outs.6.', 'stage_bns.6.')
    assert {key for key in left if not key.startswith('recurrent_dsconvs.')} == {
        key for key in fixture.state_dict if key.startswith(end)
    }
    model.load_state_dict(state)
    groups = classifier.backbone.eval()
    groups.out_indices = (*model.out_indices, 7)
    with torch.no_grad():
        for ours, expected in zip(model.eval()(fixture.input), groups(fixture.input)):
            torch.testing.assert_close(ours, expected)


def test_attention_and_old_counters() -> None:
    fixture = fixture_with_one_w_r()
    source = {k: v for k, v in fixture.state_dict.items() if not k.endswith('num_batches_tracked')}
    widths = {0: 1, 1: 1, 2: 1, 3: 1, 4: 3, 5: 3, 6: 3}
    blocks = {key.split('.conv.')[0] for key in source if key.startswith('stages.')}
    for block in {name for name in blocks if name.count('.') == 2}:
        kernel = widths[int(block.split('.')[1])]
        source[f'{block}.conv.3.conv.weight'] = torch.full((1, 1, kernel), 0.5)
    model = Classifier(attention='eca')
    state, report = convert(source, 'rlanet', model)
    assert_complete(report, source, model, splits=True)
    assert set(report.initial.values()) == {'a counter that old checkpoints lack'}
    assert state['backbone.layer5.2.attention.conv.weight'].tolist() == [[[0.5, 0.5, 0.5]]]


def test_misfits_are_named() -> None:
    fixture = golden.load('dsrla_mobilenetv2')  # with five different W_r
    with pytest.raises(TransferError, match='unexpected in the source: recurrent_dsconvs.1.weight'):
        convert(fixture.state_dict, 'rlanet', Classifier(share='network'))
    state, _ = convert(fixture.state_dict, 'rlanet', Classifier())
    for stage, key in enumerate(W_R):
        ours = state[f'backbone.recurrent_convs.{stage}.weight']
        assert torch.equal(ours, fixture.state_dict[key])
    with pytest.raises(TransferError, match=r'layer1.0.conv2.weight has shape \(32, 1, 3, 3\)'):
        convert(fixture.state_dict, 'rlanet', Classifier(rla_channels=16))
