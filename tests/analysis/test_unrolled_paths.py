"""Weights by lag in the recurrent paths of RLA (Equation 12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.analysis.lag_weights import lag_weights
from mmrecur.analysis.unrolled_paths import recurrent_paths, unrolled_norms
from mmrecur.models.backbones import (
    DenseNetBC,
    RLAMobileNetV2,
    RLAPreActResNet,
    RLAResNet,
    RLAXception,
)
from mmrecur.models.layers import RLACell
from mmrecur.models.layers.rla.other_cells import PostActRLACell, make_rla_cell
from tests.helpers import randomise_norms

STEPS = 4


def by_hand(cell: nn.Module, kernel: list[list[float]], gammas: tuple[float, ...] = ()) -> nn.Module:
    """A cell of one state map that reads two: W_o is (2, -4), the norms multiply by ``gammas``."""
    for module in cell.modules():
        if isinstance(module, RLACell | PostActRLACell):
            module.conv_out.weight.data = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1)
            module.recurrent_conv.weight.data = torch.tensor(kernel).view(1, 1, 3, 3)
    norms = [module for module in cell.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, gamma in zip(norms, gammas):
        norm.eps = 0.0
        nn.init.constant_(norm.weight, gamma)
        nn.init.constant_(norm.bias, 5.0)  # a constant reads nothing
    return cell.eval()


HALF = [[0.0, 0, 0], [0, 0.5, 0], [0, 0, 0]]
DIFFERENCE = [[0.0, 0, 0], [1, -1, 0], [0, 0, 0]]
#: A kernel with 1/4 and 3/4 in two corners; all entries of its powers have the same sign.
CORNERS = [[0.25, 0, 0], [0, 0, 0], [0, 0, 0.75]]


@pytest.mark.parametrize('kernel, factor', [(HALF, 0.5), (DIFFERENCE, 2.0), (CORNERS, 1.0)])
@pytest.mark.parametrize('kind', ['v1', 'v2', 'postact', 'unshared'])
def test_each_lag_multiplies_by_the_norm_of_the_recurrent_kernel(
    kind: str, kernel: list, factor: float
) -> None:
    """``|W_o|`` is (2 + 4) / 2 a map, and these kernels' powers have powers of their norms."""
    options = dict(v1={}, v2=dict(add_first=False), postact=dict(post_act=True), unshared=dict(share=None))
    cell = by_hand(make_rla_cell(2, 1, STEPS, **options[kind]), kernel)
    (found,) = lag_weights(cell)
    lags = np.arange(1, STEPS + 1)
    assert found.axis == 'lag'
    assert found.norms == pytest.approx(3 * factor ** (lags - 1 if kind == 'v2' else lags))
    assert found.fit.rate == pytest.approx(-np.log(factor), abs=1e-6)
    assert found.fit.r_squared == pytest.approx(1)


def test_norms_of_the_steps_multiply_what_passes_them() -> None:
    gammas = (1.0, 2.0, 3.0, 5.0)
    expected = {
        # row: state after the step, column: step whose information it is
        'v1': [[1.5], [1.5, 3], [2.25, 4.5, 4.5], [5.625, 11.25, 11.25, 7.5]],
        'postact': [[1.5], [1.5, 3], [2.25, 4.5, 4.5], [5.625, 11.25, 11.25, 7.5]],
        # new information does not pass the norm of its own step
        'v2': [[3], [3, 3], [4.5, 4.5, 3], [11.25, 11.25, 7.5, 3]],
    }
    options = dict(v1={}, v2=dict(add_first=False), postact=dict(post_act=True))
    for kind, rows in expected.items():
        cell = by_hand(make_rla_cell(2, 1, STEPS, **options[kind]), HALF, gammas)
        ((_, steps),) = recurrent_paths(cell, with_norms=True).items()
        norms = unrolled_norms(steps)
        for t, row in enumerate(rows):
            assert norms[t, : t + 1] == pytest.approx(row)
        assert np.isnan(norms[np.triu_indices(STEPS, 1)]).all()
        (found,) = lag_weights(cell, with_norms=True)
        assert found.norms == pytest.approx([np.diagonal(norms, -lag).mean() for lag in range(STEPS)])
        (found,) = lag_weights(cell, 'ordinal', with_norms=True)
        assert found.norms == pytest.approx([norms[j:, j].mean() for j in range(STEPS)])


def test_signs_may_cancel() -> None:
    """The kernels are multiplied, not their norms: the middle of (1 - z) (1 + z) is zero."""
    cell = by_hand(make_rla_cell(2, 1, 2, share=None), DIFFERENCE)
    cell.steps[1].recurrent_conv.weight.data = torch.tensor(DIFFERENCE).abs().view(1, 1, 3, 3)
    ((_, steps),) = recurrent_paths(cell).items()
    assert unrolled_norms(steps)[1].tolist() == pytest.approx([3 * 2, 3 * 2])


def responses(cells: list[nn.Module], convs: list[nn.Conv2d]) -> np.ndarray:
    """Return the response of the last state to a pixel in each step's input, with norms and without tanh."""
    answers = []
    for j, read in enumerate(cells):
        total = 0.0
        for channel in range(read.conv_out.in_channels):
            h = torch.zeros(1, read.conv_out.out_channels, 41, 41, dtype=torch.float64)
            for t, (cell, conv) in enumerate(zip(cells, convs)):
                s = torch.zeros(1, cell.conv_out.in_channels, 41, 41, dtype=torch.float64)
                s[:, :, 20, 20] = float(t == j) * (torch.arange(s.size(1)) == channel)
                h = conv(linear(cell.norms[cell.index], h + cell.conv_out(s)))
            total += h.abs().sum().item()
        answers.append(total / read.conv_out.in_channels)
    return np.array(answers)


def linear(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The norm without its shift."""
    zeros = torch.zeros_like(norm.running_mean)
    return F.batch_norm(x, zeros, norm.running_var, norm.weight, None, False, eps=norm.eps)


@pytest.mark.parametrize('kind', ['one width', 'several widths', 'depthwise'])
def test_kernels_are_what_the_convolutions_compute(kind: str) -> None:
    torch.manual_seed(0)
    if kind == 'one width':
        model = RLAPreActResNet(26, base_channels=2, rla_channels=3, with_hidden=True)
        rla = model.layer2.rla
        cells, convs, name = [rla] * 4, [rla.recurrent_conv] * 4, 'layer2'
    elif kind == 'several widths':
        model = RLAXception(base_channels=1, rla_channels=3)
        rla = model.layer1.rla
        cells, convs, name = list(rla.cells), [rla.recurrent_conv] * 3, 'layer1'
    else:
        model = RLAMobileNetV2(width_mult=0.1, rla_channels=3)
        rlas = [model.layer4.rla] * 4 + [model.layer5.rla] * 3
        cells, convs, name = rlas, [model.recurrent_convs[3]] * 7, 'layer4 to layer5'
    randomise_norms(model)
    model.double().eval()
    seen: dict[int, int] = {}
    steps = []
    for cell in cells:
        place = seen[id(cell)] = seen.get(id(cell), -1) + 1
        part = nn.Module()
        part.conv_out, part.norms, part.index = cell.conv_out, cell.norms, place
        steps.append(part)
    with torch.no_grad():
        expected = responses(steps, convs)
    found = unrolled_norms(recurrent_paths(model, with_norms=True)[name])
    assert found[-1] == pytest.approx(expected, rel=1e-5)


def test_paths_of_whole_models() -> None:
    model = nn.Module()
    model.backbone = RLAResNet(50, base_channels=4, rla_channels=2)
    found = lag_weights(model)
    assert [block.name for block in found] == [f'backbone.layer{i}' for i in (1, 2, 3, 4)]
    # the last update is not built because nothing reads it, and two norms are too few for a fit
    assert [len(block.norms) for block in found] == [3, 4, 6, 2]
    assert [block.fit is None for block in found] == [False, False, False, True]
    unshared = RLAResNet(50, base_channels=4, rla_channels=2, share=None)
    assert [len(block.norms) for block in lag_weights(unshared)] == [3, 4, 6, 2]
    mobile = lag_weights(RLAMobileNetV2(width_mult=0.1, rla_channels=2, out_indices=(7,)))
    names = ['layer1', 'layer2', 'layer3', 'layer4 to layer5', 'layer6 to layer7']
    assert [block.name for block in mobile] == names
    assert [len(block.norms) for block in mobile] == [1, 2, 3, 7, 4]
    network = RLAMobileNetV2(width_mult=0.1, rla_channels=2, share='network')
    assert [block.name for block in lag_weights(network)][:3] == names[:3]


@pytest.mark.parametrize(
    'options, with_norms, message',
    [
        (dict(cell='lstm'), False, 'layer1 has a GatedRLACell, whose gates are not linear, allowed'),
        (dict(cell='gru', share=None), False, 'layer1 has a GatedRLACell'),
        (dict(norm_cfg=dict(type='GN', num_groups=1)), True, 'with_norms=True with a GroupNorm in layer1'),
    ],
)
def test_what_is_not_linear_is_refused(options: dict, with_norms: bool, message: str) -> None:
    model = RLAResNet(50, base_channels=4, rla_channels=2, **options)
    with pytest.raises(ValueError, match=message):
        lag_weights(model, with_norms=with_norms)


@pytest.mark.parametrize('share', ['stage', None])
def test_inference_form_is_refused(share: str | None) -> None:
    model = RLAResNet(50, base_channels=4, rla_channels=2, share=share)
    model.switch_to_deploy()
    with pytest.raises(ValueError, match=r'layer1 is in its inference form, allowed: .* switch_to_deploy'):
        lag_weights(model)


def test_dense_blocks_have_no_norms_to_count_in() -> None:
    with pytest.raises(ValueError, match='with_norms=True with the dense block denseblock1, allowed: False'):
        lag_weights(DenseNetBC(depth=40, growth_rate=2), with_norms=True)
