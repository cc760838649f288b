"""Norms of shared weights by lag, and the exponential through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmrecur.analysis.lag_weights import connection_norms, fit_exponential, lag_weights
from mmrecur.models.backbones import DenseNetBC, RLAResNet


@pytest.mark.parametrize('scale, rate', [(3.0, 0.3), (40.0, 2.0), (0.5, 0.0), (1e-3, -0.1)])
def test_fit_finds_an_exponential(scale: float, rate: float) -> None:
    x = np.arange(1, 16)
    fit = fit_exponential(scale * np.exp(-rate * x))
    assert fit.scale == pytest.approx(scale, rel=1e-5)
    assert fit.rate == pytest.approx(rate, abs=1e-6)
    assert fit.r_squared == pytest.approx(1, abs=1e-9)
    assert fit(x) == pytest.approx(scale * np.exp(-rate * x))


def test_fit_is_the_least_squares_one() -> None:
    """Curves with slightly different parameters fit worse, and R^2 is the explained share of the variance."""
    x = np.arange(1, 16)
    values = 5 * np.exp(-0.4 * x) + 0.3 + 0.1 * np.cos(7 * x)
    fit = fit_exponential(values)

    def error(scale: float, rate: float) -> float:
        return ((values - scale * np.exp(-rate * x)) ** 2).sum()

    least = error(fit.scale, fit.rate)
    for scale in (0.99, 1.0, 1.01):
        for rate in (0.99, 1.0, 1.01):
            assert error(scale * fit.scale, rate * fit.rate) >= least
    assert fit.r_squared == pytest.approx(1 - least / ((values - values.mean()) ** 2).sum())
    assert 0.5 < fit.r_squared < 0.99


def test_a_rise_is_no_exponential_decay() -> None:
    steps = fit_exponential(np.array([1.0, 1, 1, 1, 5, 1, 1, 1]))
    assert steps.r_squared < 0.1


@pytest.mark.parametrize('values', [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0], [[1.0, 2.0, 3.0]]])
def test_wrong_values_are_named(values: list) -> None:
    with pytest.raises(ValueError, match='allowed: '):
        fit_exponential(np.array(values))


def model_with(sharing: str | None) -> nn.Module:
    """Layers whose weights for x^l have the size 1 / (t - l), or for ordinals 1 / l, and mixed signs."""
    model = DenseNetBC(depth=40, growth_rate=2, share=sharing)
    for block in (model.denseblock1, model.denseblock2, model.denseblock3):
        if sharing:
            numbers = torch.arange(1.0, block.num_layers).repeat_interleave(2)
            numbers = numbers.flip(0) if sharing == 'lag' else numbers
            signs = torch.randn_like(block.shared_conv1.weight).sign()
            block.shared_conv1.weight.data = signs / numbers.view(1, -1, 1, 1)
            continue
        for t, layer in enumerate(block.layers[1:], 1):
            lags = torch.arange(t, 0, -1.0).repeat_interleave(2)
            layer.conv1.weight.data[:, block.in_channels :] = -1 / lags.view(1, -1, 1, 1)
    return model


@pytest.mark.parametrize('sharing', [None, 'lag', 'ordinal'])
def test_norms_by_lag_and_by_ordinal(sharing: str | None) -> None:
    model = model_with(sharing)
    found = lag_weights(model)
    assert [(block.name, block.axis) for block in found] == [
        (f'denseblock{i}', sharing or 'lag') for i in (1, 2, 3)
    ]
    for block in found:
        # 8 output channels of absolute weight 1 / number for each map; 5 of the 6 layers are read
        assert block.norms == pytest.approx(8 / np.arange(1, 6))
        assert 0.9 < block.fit.r_squared < 1
    other = lag_weights(model, 'lag' if sharing == 'ordinal' else 'ordinal')[0].norms
    # the first norm along the other axis averages over all norms along this one
    assert other[0] == pytest.approx((8 / np.arange(1, 6)).mean())


def test_connections_end_with_the_layer_before() -> None:
    norms = connection_norms(model_with('lag').denseblock2)
    assert np.array_equal(np.isfinite(norms), np.tri(6, k=-1, dtype=bool))


def test_other_models_and_inference_forms_are_refused() -> None:
    with pytest.raises(ValueError, match='no recurrent path .* no dense block .*allowed: mmrecur.RLAResNet'):
        lag_weights(RLAResNet(50, base_channels=8, rla_channels=0))
    model = model_with('lag')
    with pytest.raises(ValueError, match="axis='time', allowed: None, 'lag', 'ordinal'"):
        lag_weights(model, 'time')
    model.switch_to_deploy()
    with pytest.raises(ValueError, match='inference form'):
        lag_weights(model)
