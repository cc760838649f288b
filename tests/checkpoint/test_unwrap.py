"""Weights in the files of other trainers, and hints at the backbone that a file belongs to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mmrecur.checkpoint import graft
from mmrecur.checkpoint.unwrap import read_weights, unwrap
from mmrecur.errors import TransferError
from mmrecur.models.backbones import ResNetShared, RLAResNet
from tests.helpers.transfer import assert_same, features, plain_resnet


@pytest.fixture(scope='module')
def source() -> nn.Module:
    return plain_resnet()


@pytest.fixture(scope='module')
def state(source: nn.Module) -> dict[str, Tensor]:
    return source.state_dict()


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


def of_mmengine(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint of EMAHook, which saves the average in place of the weights."""
    counter = {'steps': torch.tensor(3)}
    return dict(state_dict=dict(state), ema_state_dict={**counter, **prefixed(halved(state), 'module.')})


FILES = {
    'timm': lambda s: dict(epoch=1, state_dict=halved(s), state_dict_ema=dict(s)),
    'torchvision': lambda s: dict(
        model=halved(s), model_ema={'n_averaged': torch.tensor(3), **prefixed(s, 'module.')}
    ),
    'RT-DETR': lambda s: dict(model=halved(s), ema=dict(module=dict(s), updates=3)),
    'an average alone': lambda s: dict(ema_state_dict=prefixed(s, 'module.')),
    'MMEngine': of_mmengine,
}


@pytest.mark.parametrize('trainer', FILES)
def test_moving_averages(trainer: str, state: dict[str, Tensor]) -> None:
    checkpoint = FILES[trainer](state)
    found, notes = read_weights(checkpoint)
    assert found.keys() == state.keys() and all(found[key] is value for key, value in state.items())
    if trainer == 'an average alone':
        assert notes == []
        return
    assert 'the moving average of the weights; ema=False takes' in notes[0]
    found, notes = read_weights(checkpoint, ema=False)
    assert found.keys() == state.keys()
    assert torch.equal(found['conv1.weight'], state['conv1.weight'] / 2)
    assert 'the weights, not their moving average; ema=True takes' in notes[0]


def test_other_things_are_no_average(state: dict[str, Tensor]) -> None:
    assert read_weights(dict(model=state, ema=dict(decay=torch.ones(1)))) == (state, [])


@pytest.mark.parametrize('average', [AveragedModel, ExponentialMovingAverage])
def test_what_the_libraries_really_save(average: type, source: nn.Module, state: dict) -> None:
    saved = average(copy.deepcopy(source)).state_dict()
    assert unwrap(saved).keys() == unwrap({'state_dict_ema': saved}).keys() == state.keys()


@pytest.mark.parametrize(
    'prefix', ['_orig_mod.', 'model.', 'model._orig_mod.', 'module._orig_mod.', 'model.backbone.']
)
def test_names_that_mean_nothing(prefix: str, source: nn.Module, state: dict[str, Tensor]) -> None:
    model = RLAResNet(50, base_channels=8)
    grafted, _ = graft({'state_dict': prefixed(state, prefix)}, model)
    model.load_state_dict(grafted)
    assert_same(features(model), features(source))


def test_a_lightning_module_has_more_than_the_model(state: dict[str, Tensor]) -> None:
    extra = {'criterion.weight': torch.ones(2), 'ema.conv1.weight': torch.ones(1)}
    checkpoint = {'state_dict': {**prefixed(state, 'model.'), **extra}}
    assert 'criterion.weight' in unwrap(checkpoint)  # without a trainer's mark, nothing is removed
    found, notes = read_weights({'pytorch-lightning_version': '2.4.0', **checkpoint})
    assert found.keys() == state.keys()
    assert notes == ['only "model" of the Lightning module is used, not criterion, ema']


def test_a_prefix_picks_one_of_several(source: nn.Module, state: dict[str, Tensor]) -> None:
    both = {**prefixed(halved(state), 'student.backbone.'), **prefixed(state, 'teacher.backbone.')}
    model = RLAResNet(50, base_channels=8)
    with pytest.raises(TransferError, match='missing in the source'):
        graft(both, model)
    for prefix in ('teacher', 'teacher.', 'teacher.backbone.', 'module.teacher'):
        grafted, _ = graft({'state_dict': prefixed(both, 'module.')}, model, prefix=prefix)
        model.load_state_dict(grafted)
        assert_same(features(model), features(source))
    with pytest.raises(TransferError, match="prefix='pupil': no key starts with it; .* student., teacher."):
        graft(both, model, prefix='pupil')
    with pytest.raises(TransferError, match='with and without a prefix: module.conv1.weight'):
        unwrap({**state, 'module.conv1.weight': state['conv1.weight']})


def test_nothing_in_common_is_an_error_even_when_not_strict(state: dict[str, Tensor]) -> None:
    with pytest.raises(TransferError, match='nothing in .* the backbone: the source has net.conv1'):
        graft(prefixed(state, 'net.'), RLAResNet(50, base_channels=8), strict=False)
    with pytest.raises(TransferError, match='nothing in the source fits'):  # other widths, counters alone fit
        graft(state, RLAResNet(50, base_channels=16), strict=False)


SE = dict(kind='SEResNet', se_ratio=4)
SAYS = r"attention=dict\(type='se', reduction=4, bias=True\)$"
ADVICE = {
    'biases': (SE, dict(attention=dict(type='se', reduction=4)), SAYS),
    'reduction': (SE, dict(attention=dict(type='se', bias=True)), SAYS),
    'none': (SE, {}, SAYS),
    'another': (SE, dict(attention='eca'), SAYS),
    'stem': (dict(deep_stem=True), {}, 'a backbone with deep_stem=True$'),
    'plain stem': ({}, dict(deep_stem=True), 'a backbone with deep_stem=False$'),
}  # fmt: skip


@pytest.mark.parametrize('case', ADVICE)
def test_errors_say_which_options_fit(case: str) -> None:
    theirs, ours, message = ADVICE[case]
    with pytest.raises(TransferError, match=message):
        graft(plain_resnet(**theirs).state_dict(), RLAResNet(50, base_channels=8, **ours))


@pytest.mark.parametrize(
    'attention', [dict(type='se', bias=True), 'eca', 'cbam', dict(type='cbam', spatial_norm=True)], ids=str
)
def test_advice_is_what_the_source_has(attention: str | dict) -> None:
    source = RLAResNet(50, 0, base_channels=8, attention=attention).state_dict()
    with pytest.raises(TransferError) as error:
        graft(source, RLAResNet(50, base_channels=8))
    advised = str(error.value).rpartition('attention=')[2]
    args = eval(advised, {'dict': dict})
    assert args == ('eca' if attention == 'eca' else attention)
    graft(source, RLAResNet(50, base_channels=8, attention=args))


def converted_from_caffe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norms as scales and shifts alone, as in Caffe's networks."""
    constant = {'running_mean': 0.0, 'running_var': 1.0}
    return {
        key: torch.full_like(value, constant[leaf]) if (leaf := key.rpartition('.')[2]) in constant else value
        for key, value in state.items()
        if not key.endswith('num_batches_tracked')
    }


def test_strides_of_another_style_are_noted(state: dict[str, Tensor]) -> None:
    caffe = converted_from_caffe(state)
    says = {'state_dict': state, 'meta': {'cfg': "backbone=dict(type='ResNet', style='caffe')"}}
    says_other = {'state_dict': state, 'meta': {'cfg': '{"style": "pytorch"}'}}
    ours, theirs = RLAResNet(50, base_channels=8), RLAResNet(50, base_channels=8, style='caffe')

    def noted(checkpoint: Mapping[str, Any], model: nn.Module) -> str:
        return ' '.join(note for note in graft(checkpoint, model)[1].notes if 'style' in note)

    assert "looks converted from Caffe (norms without statistics), which means style='caffe'" in noted(
        caffe, ours
    )
    assert "records style='caffe'" in noted(says, ours)
    assert "set style='caffe' to keep the function" in noted(caffe, ours)
    assert "records style='pytorch'" in noted(says_other, theirs)
    assert 'it has no other style' in noted(caffe, ResNetShared(50, base_channels=8))
    fitting = [(caffe, theirs), (says, theirs), (state, ours), (says_other, ours)]
    # a network fresh from its constructor has no statistics either
    fresh = RLAResNet(50, 0, base_channels=8).state_dict()
    assert [noted(*pair) for pair in [*fitting, (fresh, ours)]] == [''] * 5
