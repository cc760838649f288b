"""Measure how much layers read from earlier layers, by lag or by ordinal number.

Zhao, Fang and Li, *Recurrence along Depth*, NeurIPS 2021, https://arxiv.org/abs/2110.11852, Figure 2 and
Appendix A.2: in a DenseNet whose 1x1 convolutions share weights by lag, the L1 norm of these weights decays
about exponentially with the lag. This observation motivates recurrent layer aggregation. Equation 12 gives
the weights of each lag in the recurrent path of an RLA network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mmrecur.analysis.unrolled_paths import recurrent_paths, unrolled_norms
from mmrecur.models.layers.rla.dense_block import DenseBlock

#: Norms can be averaged along these axes.
AXES = ('lag', 'ordinal')


@dataclass(frozen=True)
class ExponentialFit:
    r"""The curve :math:`a \exp(-b x)` that fits a series best.

    Attributes:
        scale (float): a.
        rate (float): b.
        r_squared (float): Share of the variance that the curve explains, at most 1.
    """

    scale: float
    rate: float
    r_squared: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the values of the curve at ``x``."""
        return self.scale * np.exp(-self.rate * np.asarray(x, dtype=float))


@dataclass(frozen=True)
class LagWeights:
    """Norms by lag or ordinal number, of a dense block or of the recurrent path of a stage.

    Attributes:
        name (str): Name of the block or the stage in the model.
        axis (str): ``'lag'`` or ``'ordinal'``.
        norms (np.ndarray): L1 norm of the weights per feature map that they read, averaged over the layers,
            for lags or ordinal numbers 1, 2, ...
        fit (ExponentialFit, optional): Exponential fit of the norms; None if there are fewer than three.
    """

    name: str
    axis: str
    norms: np.ndarray
    fit: ExponentialFit | None


def fit_exponential(values: np.ndarray) -> ExponentialFit:
    r"""Fit :math:`a \exp(-b x)` to values at x = 1, 2, ... by least squares.

    Both the error and R^2 use the values, not their logarithms. The best scale for a given rate is known in
    closed form, so only the rate is searched.

    Args:
        values (np.ndarray): At least three positive values, shape (n,).

    Returns:
        ExponentialFit: The fit. R^2 is 1 if all values are equal.

    Raises:
        ValueError: If there are fewer than three values, or one is not positive and finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3:
        raise ValueError(f'values of shape {values.shape}, allowed: shape (n,) with n of at least 3')
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f'values={values}, allowed: positive numbers')
    x = np.arange(1, len(values) + 1)

    def best(rate: float) -> tuple[float, float]:
        curve = np.exp(-rate * (x - 1))  # starts at 1, so that it stays finite
        scale = curve @ values / (curve @ curve)
        return float(((values - scale * curve) ** 2).sum()), float(scale)

    # a wide grid locates the minimum, and a ternary search refines it
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
    """Return the norms of the weights between the layers of a block (Figure 5 of the DenseNet paper).

    Args:
        block (DenseBlock): A dense block that is not in its inference form.

    Returns:
        np.ndarray: Shape (L, L). Row t, column l holds the L1 norm of the weights with which the 1x1
        convolution of layer t + 1 reads layer l + 1, divided by its k feature maps, or NaN if it does not
        read it. Weights for the input of the block are left out.

    Raises:
        ValueError: If the block is in its inference form, where norms are fused into the weights.
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
    """Measure norms by lag or ordinal number for all dense blocks and recurrent paths of RLA in a model.

    In a dense block, the norms are those of the 1x1 convolutions. If these share weights along ``axis``, all
    averaged norms are equal. In a plain DenseNet, the average shows whether the weights could be shared.

    In a recurrent path, the norms are those of ``g_2^l g_1``, with which the state reads the information
    aggregated l - 1 steps earlier (Equation 12). The tanh is treated as the identity. Norms are averaged over
    steps that have their own convolutions.

    Args:
        model (nn.Module): A model with one of the RLA backbones or a
            :class:`~mmrecur.models.backbones.DenseNetBC`.
        axis (str, optional): ``'lag'`` or ``'ordinal'``. None uses the axis along which a DenseNet
            shares weights, and lag for all other models. Defaults to None.
        with_norms (bool): Include the scales of the batch norms, which differ between the steps of a
            recurrent path. Defaults to False, as in Equation 12.

    Returns:
        list[LagWeights]: One entry per block or stage.

    Raises:
        ValueError: If ``axis`` is wrong; if the model is in its inference form, has gated cells, or has
            neither recurrent paths nor dense blocks of at least four layers; if ``with_norms`` is set for
            dense blocks or for norms that are not affine maps.
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
        # the first layer reads no layer, and no layer reads the last
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
