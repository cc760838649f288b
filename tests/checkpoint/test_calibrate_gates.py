"""Calibrated gates: their rates, the samples that they let pass, and unchanged parameters."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmrecur.analysis.loop_recorder import LoopRecorder
from mmrecur.checkpoint.calibrate_gates import calibrate_gates
from mmrecur.models.backbones import DRMobileNetV2, DRResNet
from mmrecur.models.layers.loop import expected_iterations
from tests.helpers import randomise_norms


def network(**kwargs) -> DRResNet:
    torch.manual_seed(0)
    model = DRResNet(depth=None, blocks=(1, 2, 3), loops=(1, 2, 3), stem='cifar', base_channels=4, **kwargs)
    randomise_norms(model)
    for block in model.loop_blocks().values():
        if block.gate is not None:
            nn.init.normal_(block.gate.fc2.weight, std=3)
    return model


def iterations(model: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    with LoopRecorder(model) as recorder, torch.no_grad():
        model(images)
    return recorder.times().counts


@pytest.mark.parametrize('rate', [None, 0.4])
@pytest.mark.parametrize('form', ['training', 'masked', 'inference'])
@pytest.mark.parametrize('gate_position', ['before', 'after'])
def test_loops_run_as_often_as_the_rate_says(rate: float | None, form: str, gate_position: str) -> None:
    model = network(skip=form != 'masked', gate_position=gate_position)
    images = torch.randn(200, 3, 16, 16)
    if form == 'inference':
        rate = rate or 0.7  # the inference form has no objective
        model.eval().switch_to_deploy()
    model.train(form == 'training')
    shifts = calibrate_gates(model, images, rate)
    assert model.training == (form == 'training')
    counts = iterations(model.eval(), images)
    assert list(counts) == list(shifts) == ['layer2.1', 'layer3.1', 'layer3.2']
    for name, own in counts.items():
        block = model.loop_blocks()[name]
        expected = 200 * expected_iterations(rate or 0.7, block.num_iterations, block.first_gated)
        # a shift cannot split the iterations of the last image exactly
        assert own.sum() == pytest.approx(expected, abs=block.num_iterations)
        assert len(set(own.tolist())) > 1


def test_the_samples_with_the_highest_scores_pass() -> None:
    model = network().eval()
    images = torch.randn(50, 3, 16, 16)
    block, maps = model.layer2[1], []
    handle = block.register_forward_pre_hook(lambda module, args: maps.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    before = block.gate.scores(maps[0])
    calibrate_gates(model, images, 0.6)
    first = iterations(model, images)['layer2.1'] > 0
    margins = before[:, 1] - before[:, 0]
    assert margins[first].min() > margins[~first].max()


def test_only_the_biases_of_gates_change() -> None:
    model = network()
    old = copy.deepcopy(model.state_dict())
    shifts = calibrate_gates(model, torch.randn(20, 3, 16, 16))
    new = model.state_dict()
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert changed == [f'{name}.gate.fc2.bias' for name in shifts]
    for name, shift in shifts.items():
        key = f'{name}.gate.fc2.bias'
        assert (new[key] - old[key]).tolist() == pytest.approx([0, shift], abs=1e-6)


def test_single_layer_gates_and_gates_with_equal_scores() -> None:
    model = DRMobileNetV2(width_mult=0.25)
    images = torch.randn(3, 3, 32, 32)
    assert calibrate_gates(model, images).keys() == model.loop_blocks().keys()
    flat = network()
    for block in flat.loop_blocks().values():
        nn.init.zeros_(block.gate.fc2.weight)
    calibrate_gates(flat, images)  # with equal scores, all images pass or no image passes
    assert all(len(set(own.tolist())) == 1 for own in iterations(flat.eval(), images).values())


def test_wrong_backbones_and_rates_are_rejected() -> None:
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match='DRResNet has no gates'):
        calibrate_gates(network(gated=False), images, 0.5)
    with pytest.raises(ValueError, match='rate=None for a backbone without target rate'):
        calibrate_gates(network(loss_gate=None), images)
    with pytest.raises(ValueError, match='rate=1.5, allowed: a number between 0 and 1'):
        calibrate_gates(network(), images, 1.5)
