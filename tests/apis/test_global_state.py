"""Functions of this package do not change global state of the libraries."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmrecur.apis
import mmrecur.checkpoint
from mmrecur.analysis import benchmark, coefficients, complexity
from mmrecur.analysis.effective_receptive_field import segment_view
from mmrecur.analysis.forced_loops import forced_iterations, spread_iterations
from mmrecur.analysis.loop_complexity import measure_loops
from mmrecur.analysis.loop_recorder import LoopRecorder
from mmrecur.analysis.plots import plot_spectra
from mmrecur.analysis.tied_layers import layer_sequences
from mmrecur.apis import get_model, swap_backbone
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.trial import try_swap
from mmrecur.checkpoint import convert, graft, tie_layers
from mmrecur.checkpoint.calibrate_gates import calibrate_gates
from mmrecur.engine.randomness import own_randomness
from mmrecur.models.backbones import SWRN, DRResNet, ResNetShared, RLAResNet
from mmrecur.models.layers import ChannelRecurrentConv, fuse_norm, materialise_convs
from mmrecur.models.layers.template_bank.similarity import similarity_matrices
from tests import golden
from tests.helpers.global_state import unchanged

NAME = 'rla-resnet50_4xb64_in1k'

NARROW = {'model.backbone.base_channels': 8, 'model.head.in_channels': 8 * 32 + 32}

BASE = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=50, base_channels=8, stem_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=256),
    ),
    default_scope='mmpretrain',
)

X = torch.zeros(2, 3, 32, 32)


def rla(rla_channels: int = 4, **options: Any) -> RLAResNet:
    return RLAResNet(50, rla_channels, base_channels=8, **options)


def swap(init: str, try_it: bool) -> None:
    planned = plan_swap(Config(BASE), 'rla-resnet', init)
    if try_it:
        try_swap(planned, (32, 32))


def shared(**options: Any) -> ResNetShared:
    return ResNetShared(18, base_channels=8, shared_rank=4, **options)


def banks() -> SWRN:
    return SWRN(16, 1, num_templates=1)


def grafted(state: dict[str, torch.Tensor], model: nn.Module) -> None:
    graft(state, model)


def measured(model: nn.Module) -> None:
    complexity.measure(model, X[:1])
    complexity.image_inputs(model, (32, 32))


def recorded(model: nn.Module) -> None:
    with LoopRecorder(model) as recorder, torch.no_grad():
        model(X)
    recorder.times()


def forced(model: nn.Module) -> None:
    with forced_iterations(model, {'layer2.1': [2, 0], 'layer3.1': [1, 1]}), torch.no_grad():
        model(X)
    spread_iterations({'a': 2}, 4, 0.5)


def authors() -> tuple[dict[str, torch.Tensor], RLAResNet]:
    return golden.load('det_rla_resnet50').state_dict, RLAResNet(50, variant='v3')


#: Public function -> function that prepares its arguments, and the call.
CASES: dict[str, tuple[Callable[[], tuple], Callable]] = {
    'apis.list_models': (tuple, mmrecur.apis.list_models),
    'apis.list_backbones': (tuple, mmrecur.apis.list_backbones),
    'apis.get_model': (tuple, lambda: get_model(NAME, options=NARROW)),
    'apis.get_model with a seed': (tuple, lambda: get_model(NAME, options=NARROW, seed=3)),
    'apis.register_models': (tuple, mmrecur.apis.register_models),
    'apis.deploy': (lambda: (rla(attention='eca'),), mmrecur.apis.deploy),
    'apis.deploy of shared bases': (lambda: (shared(),), mmrecur.apis.deploy),
    'apis.deploy of banks': (lambda: (banks(),), mmrecur.apis.deploy),
    'apis.deploy of loops': (lambda: (DRResNet(16),), mmrecur.apis.deploy),
    'apis.reestimate_norms': (
        lambda: (DRResNet(16).train(),),
        lambda model: mmrecur.apis.reestimate_norms(model, [X]),
    ),
    'apis.recover': (
        lambda: (shared(share=None), shared()),
        lambda teacher, student: mmrecur.apis.recover(teacher, student, [X], steps=2),
    ),
    'apis.swap_backbone': (tuple, lambda: swap_backbone(Config(BASE), 'rla-resnet')),
    'apis.swap_backbone and a trial': (tuple, lambda: swap('none', True)),
    'checkpoint.graft': (lambda: (rla(0).state_dict(), rla()), grafted),
    'checkpoint.graft of shared bases': (
        lambda: (shared(share=None).state_dict(), shared()),
        grafted,
    ),
    'checkpoint.graft of loops': (lambda: (DRResNet(16).state_dict(), DRResNet(16)), grafted),
    'checkpoint.convert': (authors, lambda state, model: convert(state, 'rlanet', model)),
    'checkpoint.tie_layers': (lambda: (banks(),), lambda model: tie_layers(model.state_dict(), model, 0.9)),
    'checkpoint.calibrate_gates': (lambda: (DRResNet(16),), lambda model: calibrate_gates(model, X)),
    'analysis.complexity': (lambda: (rla(),), measured),
    'analysis.benchmark': (lambda: (rla(),), benchmark.inference_form),
    'analysis.coefficients': (lambda: (shared(),), coefficients.coefficients),
    'analysis.gram_spectra': (lambda: (shared(),), coefficients.gram_spectra),
    'analysis.segment_view': (lambda: (ChannelRecurrentConv(4, 4, 4),), segment_view),
    'analysis.forced_loops': (lambda: (DRResNet(16).eval(),), forced),
    'analysis.loop_times': (lambda: (DRResNet(16).eval(),), recorded),
    'analysis.loop_complexity': (lambda: (DRResNet(16),), lambda model: measure_loops(model, X[:1])),
    'models.layers.template_bank.similarity': (lambda: (banks(),), similarity_matrices),
    'analysis.loops': (lambda: (banks(),), layer_sequences),
    'analysis.plots': (tuple, lambda: plot_spectra({'a': [torch.ones(3)]})),
    'models.layers.fuse_norm': (lambda: (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), fuse_norm),
    'models.layers.materialise_convs': (lambda: (banks(),), materialise_convs),
}


@pytest.mark.parametrize('name', CASES)
def test_global_state_is_as_it_was(name: str, capsys: pytest.CaptureFixture) -> None:
    prepare, call = CASES[name]
    build_model(BASE['model'], 'mmpretrain')  # imports the libraries, whose imports change global state
    arguments = prepare()
    with unchanged():
        call(*arguments)


def test_no_public_function_is_left_out() -> None:
    called = {name.split(' ')[0] for name in CASES}
    public = {
        f'{package.__name__.removeprefix("mmrecur.")}.{name}'
        for package in (mmrecur.apis, mmrecur.checkpoint)
        for name in package.__all__
        if inspect.isfunction(getattr(package, name))
    }
    # a decorator
    assert public - called == {'checkpoint.register_graft'}


def weights(seed: int | None = None) -> torch.Tensor:
    return get_model('dr-resnet16_1xb256_cifar10', backbone_only=True, seed=seed).conv1.weight


def test_models_in_a_row_differ_and_runs_repeat() -> None:
    torch.manual_seed(1)
    first, second = weights(), weights()
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert not torch.equal(weights(), first)
    torch.manual_seed(1)  # as in another run of the same program
    assert torch.equal(weights(), first) and torch.equal(weights(), second)
    third = weights(seed=3)
    assert torch.equal(weights(seed=3), third) and not torch.equal(weights(seed=4), third)


def test_tools_get_the_same_weights_whatever_was_drawn() -> None:
    cfg = dict(type='mmrecur.RLAResNet', depth=50, base_channels=8)
    first = build_model(cfg, None).conv1.weight
    torch.rand(3)
    assert torch.equal(build_model(cfg, None).conv1.weight, first)


def test_own_randomness_ends_with_an_error_too() -> None:
    with unchanged(), pytest.raises(KeyError), own_randomness(3):
        torch.rand(1), np.random.rand(), random.random()
        raise KeyError
