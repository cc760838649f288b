"""Norm and ReLU before pointwise convolutions, fused into them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmrecur.models.layers.common.fuse_preact import fuse_preactivation

#: Scales and shifts of a channel: those of trained networks, dead ones, falling ones, extremes.
NUMBERS = st.sampled_from([0.0, 1e-38, -1e-20, 1e-9, -1e-5, 1e-3, -0.5, 1.0, -2.0, 50.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_folded_form_computes_the_same(channels: list, with_bias: bool, pool: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(len(channels)).eval()
    norm.weight.data, norm.bias.data = torch.tensor(channels).T.contiguous()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    convs = [nn.Conv2d(len(channels), 3, 1, stride, bias=with_bias) for stride in (1, 2)]
    between = nn.AvgPool2d(2, ceil_mode=True) if pool else nn.Identity()
    x = torch.randn(2, len(channels), 5, 7)
    with torch.no_grad():
        active = between(torch.relu(norm(x)))
        expected = [conv(active) for conv in convs]
        clamp, folded = fuse_preactivation(norm, convs)
        clamped = between(clamp(x))
        for conv, result in zip(folded, expected, strict=True):
            torch.testing.assert_close(conv(clamped), result, rtol=1e-5, atol=1e-5 * max(1, active.max()))
    assert all(torch.isfinite(value).all() for conv in folded for value in conv.parameters())


@pytest.mark.parametrize('norm', [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_norms_that_depend_on_the_image_stay(norm: nn.Module) -> None:
    assert fuse_preactivation(norm, [nn.Conv2d(4, 2, 1)]) is None
