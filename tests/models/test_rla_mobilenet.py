"""RLA-MobileNetV2 against its equations, written out, and against the libraries' MobileNetV2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from mmrecur.models.backbones import RLAMobileNetV2
from mmrecur.models.layers import RLAInvertedResidual
from mmrecur.models.layers.common.inverted_residual import round_channels
from tests.helpers import randomise_norms
from tests.helpers.rla_mobilenet import reference_forward


@pytest.mark.parametrize('sharing', ['stage', 'network'])
@pytest.mark.parametrize('attention', [None, 'eca', 'se'])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_network_equals_the_equations(sharing: str, attention: str | None, norm_eval: bool) -> None:
    torch.manual_seed(0)
    model = RLAMobileNetV2(0.25, 4, sharing, attention, out_indices=(1, 4, 7), norm_eval=norm_eval)
    randomise_norms(model)
    model.double().train()
    x = torch.randn(2, 3, 64, 64).double()
    results = []
    for forward in (model, lambda x: reference_forward(model, x)):
        model.zero_grad()
        outputs = forward(x)
        sum((output * output).mean() for output in outputs).backward()
        results.append((outputs, [p.grad.clone() for p in model.parameters()]))
    for ours, theirs in zip(*(result[0] for result in results), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(*(result[1] for result in results), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def test_statistics_of_a_state_of_zeros_are_recorded() -> None:
    """The first block reads zeros without building them; its norms move as if it had."""
    block = RLAInvertedResidual(8, 8, 8, hidden_channels=4).train()
    randomise_norms(block)
    with_zeros = RLAInvertedResidual(8, 8, 8, hidden_channels=4).train()
    with_zeros.load_state_dict(block.state_dict())
    x = torch.randn(3, 8, 7, 7)
    output = block(x)
    torch.testing.assert_close(output, with_zeros(x, torch.zeros(3, 4, 7, 7)))
    for key, value in with_zeros.state_dict().items():
        torch.testing.assert_close(block.state_dict()[key], value)
    # a strided block too
    block = RLAInvertedResidual(8, 48, 16, stride=2, hidden_channels=4).eval()
    randomise_norms(block)
    with torch.no_grad():
        expected = block(x, torch.zeros(3, 4, 7, 7))
        torch.testing.assert_close(block(x), expected)
        block.switch_to_deploy()
        block.assume_zero_state()
        assert not any('hidden' in key for key in block.state_dict())
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('width', [0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_plain_network_is_the_library_s(width: float) -> None:
    pytest.importorskip('mmpretrain')
    with torch.device('meta'):
        theirs = MODELS.build(dict(type='mmpretrain.MobileNetV2', widen_factor=width))
        ours = RLAMobileNetV2(width, rla_channels=0, out_indices=(7,))
    shapes = [tuple(p.shape) for p in theirs.parameters()]
    assert [tuple(p.shape) for p in ours.parameters()] == shapes


def test_channels_are_rounded_as_published() -> None:
    assert [round_channels(c) for c in (1, 11, 12, 20, 33.6, 80)] == [8, 16, 16, 24, 32, 80]


@pytest.mark.parametrize('frozen', [5, 6, 7, 8])
@pytest.mark.parametrize('sharing', ['stage', 'network'])
def test_shared_weights_freeze_with_the_last_group_that_uses_them(frozen: int, sharing: str) -> None:
    model = RLAMobileNetV2(0.25, 4, sharing, out_indices=(6, 7), frozen_stages=frozen).train()
    # groups 4 and 5 share the fourth W_r, 6 and 7 the fifth
    last_users = [1, 2, 3, 5, 7] if sharing == 'stage' else [7]
    assert len(model.recurrent_convs) == len(last_users)
    for conv, last in zip(model.recurrent_convs, last_users, strict=True):
        assert conv.weight.requires_grad == conv.training == (last > frozen)
    owned = [id(p) for stage in range(9) for m in model.stage_modules(stage) for p in m.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


WRONG = [
    (dict(width_mult=0), 'width_mult=0, allowed: a positive number'),
    (dict(width_mult='1.0'), "width_mult='1.0', allowed"),
    (dict(width_mult=True), 'width_mult=True, allowed'),
    (dict(rla_channels=-1), 'rla_channels=-1, allowed: an integer of at least 0'),
    (dict(share='all'), "share='all', allowed: 'stage', 'network'"),
    (dict(attention='cba'), "attention='cba', allowed: None"),
    (dict(attention=dict(type='eca', kernel_size=2)), 'attention=.*odd'),
    (dict(out_indices=(7, 8)), r'out_indices=\(7, 8\), allowed: .* from 0 to 7'),
    (dict(frozen_stages=9), 'frozen_stages=9, allowed: an integer from -1 to 8'),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RLAMobileNetV2(**arguments)


COUNTS = {
    'mobilenet_v2': dict(rla_channels=0),
    'mobilenetv2_eca': dict(rla_channels=0, attention='eca'),
    'dsrla_mobilenetv2': dict(share='network'),
    'dsrla_mobilenetv2_eca': dict(share='network', attention='eca'),
}


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_are_the_authors(name: str) -> None:
    counts = json.loads((Path(__file__).parents[1] / 'data' / 'parameters.json').read_text())
    with torch.device('meta'):
        model = RLAMobileNetV2(out_indices=(7,), **COUNTS[name])
    classifier = 1000 * (model.out_channels[-1] + 1)
    ours = sum(p.numel() for p in model.parameters()) + classifier
    assert ours == counts['rla (author implementation)'][name]
