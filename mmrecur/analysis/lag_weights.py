"""How much is read of earlier layers, by lag or by ordinal number.

Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Figure 2 and
Appendix A.2: in a DenseNet whose 1x1 convolutions share weights by lag, the L1 norm of these weights decays
with the lag about exponentially, which is what recurrent layer aggregation starts from. Equation 12 gives
the weights of each lag in what has learned to aggregate, the recurrent path of an RLA network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mmrecur.analysis.unrolled_paths import recurrent_paths, unrolled_norms
from mmrecur.models.layers.rla.dense_block import DenseBlock

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
    """Norms of a dense block, or of the recurrent path of a stage, by lag or by ordinal number.

    Attributes:
        name (str): The block's or the stage's name in the model.
        axis (str): ``'lag'`` or ``'ordinal'``.
        norms (np.ndarray): For 1, 2, ... the L1 norm of the weights, for each map they read, averaged over
            the layers.
        fit (ExponentialFit, optional): The exponential curve through them; None where there are fewer than
            three.
    """

    name: str
    axis: str
    norms: np.ndarray
    fit: ExponentialFit | None


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


def lag_weights(model: nn.Module, axis: str | None = None, with_norms: bool = False) -> list[LagWeights]:
    """Norms by lag or ordinal number for every dense block and every recurrent path of RLA in a model.

    Of a dense block they are those of the 1x1 convolutions. With shared weights the average by their own axis
    is over equal numbers; for a plain DenseNet it shows whether they could be shared.

    Of a recurrent path they are those of ``g_2^l g_1``, with which the state reads what was aggregated l - 1
    steps before (Equation 12). The tanh is left out, as if its slope were one everywhere. Steps with
    convolutions of their own are averaged.

    Args:
        model (nn.Module): A model with one of the RLA backbones or a
            :class:`~mmrecur.models.backbones.DenseNetBC`.
        axis (str, optional): ``'lag'`` or ``'ordinal'``. Defaults to what a DenseNet shares by, to lag for
            all else.
        with_norms (bool): Count the factors of a recurrent path's batch norms in, of which every step has its
            own. Defaults to False: Equation 12 as it is.

    Returns:
        list[LagWeights]: One for each block or stage.

    Raises:
        ValueError: If ``axis`` is wrong; if the model has nothing of the kind (dense blocks of four layers
            or more), is in its inference form, or has gated cells; if ``with_norms`` is set for dense
            blocks or for norms that are no affine map.
    """
    if axis not in (None, *AXES):
        raise ValueError(f'axis={axis!r}, allowed: None, {", ".join(map(repr, AXES))}')
    found = [
        _averages(name, axis or 'lag', unrolled_norms(steps))
        for name, steps in recurrent_paths(model, with_norms).items()
    ]
    for name, block in model.named_modules():
        if not isinstance(block, DenseBlock) or block.num_layers < 4:
            continue
        if with_norms:
            raise ValueError(f'with_norms=True with the dense block {name}, allowed: False')
        # the first layer reads none, and none reads the last
        norms = connection_norms(block)[1:, :-1]
        found.append(_averages(name, axis or block.share or 'lag', norms))
    if not found:
        raise ValueError(
            'the model has no recurrent path of RLA and no dense block of four layers or more, allowed: '
            'mmrecur.RLAResNet and the other RLA networks, mmrecur.DenseNetBC'
        )
    return found


def _averages(name: str, axis: str, norms: np.ndarray) -> LagWeights:
    """Average a lower triangular matrix, with lag 1 on its diagonal, over its diagonals or columns."""
    if axis == 'lag':
        series = np.array([np.diagonal(norms, -lag).mean() for lag in range(len(norms))])
    else:
        series = np.nanmean(norms, axis=0)
    return LagWeights(name, axis, series, fit_exponential(series) if len(series) > 2 else None)
