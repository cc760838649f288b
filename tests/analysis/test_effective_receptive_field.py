"""Effective receptive fields, compared with fields known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmrecur.analysis.effective_receptive_field import gradient_energy, radius_of, segment_view
from mmrecur.models.layers import ChannelRecurrentConv


def test_field_of_a_box_filter() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(conv.weight, 2.0)
    energy = gradient_energy(conv, torch.zeros(1, 1, 9, 9))
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 4.0
    assert torch.equal(energy[0], expected)
    # of nine pixels, four are at distance 1 and four at the square root of 2
    assert radius_of(energy) == pytest.approx((12 / 9) ** 0.5)


def linear_layer(weight_x: float, weight_h: float) -> ChannelRecurrentConv:
    """Build a layer with h_i = weight_x * x_i + weight_h * h_(i-1): one channel, no norm, no ReLU."""
    layer = ChannelRecurrentConv(1, 1, 4, kernel_size_x=1, kernel_size_h=1, activation='linear')
    nn.init.constant_(layer.conv_x.weight, weight_x)
    nn.init.constant_(layer.conv_h.weight, weight_h)
    nn.init.zeros_(layer.conv_h.bias)
    layer.norms = nn.ModuleList(nn.Identity() for _ in range(4))
    layer.relu = nn.Identity()
    return layer


def test_shares_of_the_segments() -> None:
    view = segment_view(linear_layer(3.0, 0.5))
    expected = np.tril(0.25 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    assert view.influence == pytest.approx(expected / expected.sum(1, keepdims=True))
    assert np.array_equal(view.radius, np.zeros(4))


def test_segments_depend_on_earlier_ones_and_have_a_larger_radius_than_the_first() -> None:
    torch.manual_seed(0)
    layer = ChannelRecurrentConv(2, 4, 5).train()
    layer.norms[0].eval()
    view = segment_view(layer)
    assert layer.training and layer.norms[1].training and not layer.norms[0].training
    assert np.array_equal(view.influence > 0, np.tril(np.ones((5, 5), bool)))
    assert view.influence.sum(1) == pytest.approx(np.ones(5))
    assert (view.radius[1:] > view.radius[0]).all()


def test_a_layer_without_gradient_is_rejected() -> None:
    layer = ChannelRecurrentConv(1, 1, 3, activation='relu')
    nn.init.constant_(layer.conv_x.bias, -1e4)
    with pytest.raises(ValueError, match='output segment 0 of conv has no gradient'):
        segment_view(layer, name='conv')
    assert layer.training
