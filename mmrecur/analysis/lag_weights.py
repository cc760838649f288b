"""How much the layers of a dense block read of earlier ones, by lag or by ordinal number.

Figure 2 and Appendix A.2 of Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021,
https://arxiv.org/abs/2110.11852: in a DenseNet whose 1x1 convolutions share weights by lag, the L1 norm of
these weights decays with the lag about exponentially, which is what recurrent layer aggregation starts
from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mmrecur.models.layers.dense import DenseBlock

#: What norms can be averaged by.
AXES = ('lag', 'ordinal')


@dataclass(frozen=True)
class ExponentialFit:
    r"""The curve :math:`a \exp(-b x)` that is nearest to a series.

    Attributes:
        scale (float): a.
        rate (float): b.
        r_squared (float): Share of the series' variance that the curve explains, at most 1.
    """

    scale: float
    rate: float
    r_squared: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Value of the curve."""
        return self.scale * np.exp(-self.rate * np.asarray(x, dtype=float))


@dataclass(frozen=True)
class LagWeights:
    """Norms of a dense block by lag or by ordinal number.

    Attributes:
        name (str): The block's name in the model.
        axis (str): ``'lag'`` or ``'ordinal'``.
        norms (np.ndarray): For 1, 2, ... the L1 norm of the weights of the 1x1 convolutions, for each
            map they read, averaged over the layers.
        fit (ExponentialFit): The exponential curve through them.
    """

    name: str
    axis: str
    norms: np.ndarray
    fit: ExponentialFit


def fit_exponential(values: np.ndarray) -> ExponentialFit:
    r"""Fit :math:`a \exp(-b x)` to values at x = 1, 2, ... by least squares.

    The squares are those of the values themselves, not of their logarithms, as R^2 is. For a given rate
    the best scale is known, so the search is over the rate alone.

    Args:
        values (np.ndarray): At least three positive values, shape (n,).

    Returns:
        ExponentialFit: The fit; R^2 is 1 where all values are equal.

    Raises:
        ValueError: If there are too few values, or one is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3:
        raise ValueError(f'values of shape {values.shape}, allowed: three or more in a row')
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f'values={values}, allowed: positive numbers')
    x = np.arange(1, len(values) + 1)

    def best(rate: float) -> tuple[float, float]:
        curve = np.exp(-rate * (x - 1))  # from 1, so that it stays finite
        scale = curve @ values / (curve @ curve)
        return float(((values - scale * curve) ** 2).sum()), float(scale)

    # the minimum is near a point of a wide grid; there the valley is searched until it is exact
    grid = np.sinh(np.linspace(-4, 4, 801)) / 4
    nearest = int(np.argmin([best(rate)[0] for rate in grid]))
    low, high = grid[max(nearest - 1, 0)], grid[min(nearest + 1, len(grid) - 1)]
    for _ in range(100):
        third = (high - low) / 3
        if best(low + third)[0] < best(high - third)[0]:
            high -= third
        else:
            low += third
    rate = float(low + high) / 2
    error, scale = best(rate)
    spread = float(((values - values.mean()) ** 2).sum())
    constant = spread <= 1e-24 * float(values @ values)
    return ExponentialFit(scale * np.exp(rate), rate, 1.0 if constant else 1 - error / spread)


@torch.no_grad()
def connection_norms(block: DenseBlock) -> np.ndarray:
    """Norms of the weights between the layers of a block (Figure 5 of the DenseNet paper).

    Args:
        block (DenseBlock): A block with any sharing, not in its inference form.

    Returns:
        np.ndarray: Shape (L, L); in row t and column l the L1 norm of the weights with which the 1x1
        convolution of layer t + 1 reads layer l + 1, for each of its k maps; NaN where it does not. What
        reads the block's input is left out.

    Raises:
        ValueError: If the block is in its inference form, whose weights have norms folded in.
    """
    layers, k = block.layers, block.growth_rate
    if any(layer.conv1.bias is not None for layer in layers):
        raise ValueError('the block is in its inference form, allowed: a model before switch_to_deploy()')
    norms = np.full((len(layers), len(layers)), np.nan)
    for index, layer in enumerate(layers[1:], 1):
        weight = layer.weight(block.shared_weight(index))[:, block.in_channels :]
        columns = weight.double().abs().flatten(1).sum(0)
        norms[index, :index] = columns.view(index, k).mean(1).cpu().numpy()
    return norms


def lag_weights(model: nn.Module, axis: str | None = None) -> list[LagWeights]:
    """Norms by lag or ordinal number for every dense block of a model.

    With shared weights the average by their own axis is over equal numbers; for a plain DenseNet it
    shows whether they could be shared.

    Args:
        model (nn.Module): A model with a :class:`~mmrecur.models.backbones.DenseNetBC`.
        axis (str, optional): ``'lag'`` or ``'ordinal'``. Defaults to what the model shares by, to lag for
            a plain DenseNet.

    Returns:
        list[LagWeights]: One for each block.

    Raises:
        ValueError: If ``axis`` is wrong, the model has no dense block of four layers or more, or is in its
            inference form.
    """
    if axis not in (None, *AXES):
        raise ValueError(f'axis={axis!r}, allowed: None, {", ".join(map(repr, AXES))}')
    found = []
    for name, block in model.named_modules():
        if not isinstance(block, DenseBlock) or block.num_layers < 4:
            continue
        own = axis or block.sharing or 'lag'
        norms = connection_norms(block)
        if own == 'lag':
            series = [np.diagonal(norms, -lag).mean() for lag in range(1, block.num_layers)]
        else:
            series = np.nanmean(norms[:, :-1], axis=0)
        found.append(LagWeights(name, own, np.array(series), fit_exponential(series)))
    if not found:
        raise ValueError('the model has no dense block of four layers or more, allowed: mmrecur.DenseNetBC')
    return found
