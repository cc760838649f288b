"""Counts of parameters and multiply-adds that can be worked out by hand."""

import pytest
import torch
from torch import nn

from mmrecur.analysis.complexity import count_parameters, image_inputs, measure


class Twice(nn.Module):
    """A convolution that runs twice, and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.unused = nn.Linear(4, 2)
        self.conv2 = self.conv
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv2(self.conv(x)))


def test_multiply_adds_of_a_weight_used_twice():
    model = Twice().train()
    model.unused.weight.requires_grad = False
    measured = measure(model, torch.zeros(1, 3, 8, 5))
    assert measured[''].multiply_adds == 2 * (8 * 5) * 3 * 3 * 9
    assert measured[''].parameters == 3 * 3 * 9 + 4 * 2 + 2
    assert measured[''].trainable == 3 * 3 * 9 + 2
    assert measured['unused'].multiply_adds == 0 and measured['unused'].parameters == 10
    assert 'relu' not in measured
    assert model.training


def test_shared_parameters_count_once():
    assert count_parameters(Twice()) == (81 + 10, 81 + 10)


def test_quadruple_area_is_quadruple_work():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    work = [measure(model, image_inputs(model, (s, s))[0])[''].multiply_adds for s in (8, 16)]
    assert work[1] == 4 * work[0]


@pytest.mark.parametrize('shape', [(3, 8, 8), (2, 3, 8, 8)])
def test_wrong_inputs_are_named(shape):
    with pytest.raises(ValueError, match=r'inputs has shape'):
        measure(nn.Conv2d(3, 3, 1), torch.zeros(shape))
