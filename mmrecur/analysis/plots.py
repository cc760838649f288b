"""Drawing of what the other modules here compute. Needs matplotlib, which MMEngine brings along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .effective_receptive_field import SegmentView
from .lag_weights import LagWeights

#: Colours that colour-blind readers tell apart (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def plot_lag_weights(blocks: Sequence[LagWeights], title: str = '') -> Figure:
    """Draw norms by lag or ordinal number with their exponential fits, as Figure 2 of the RLA paper.

    Args:
        blocks (Sequence[LagWeights]): One curve each, all with the same axis.
        title (str): Title. Defaults to none.

    Returns:
        Figure: The figure; no window is opened.
    """
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axes = figure.add_subplot()
    for i, block in enumerate(blocks):
        colour, x = COLOURS[i % len(COLOURS)], np.arange(1, len(block.norms) + 1)
        smooth = np.linspace(1, len(block.norms), 200)
        axes.plot(x, block.norms, 'o', color=colour, markersize=5, label=block.name.split('.')[-1])
        label = f'{block.fit.scale:.2f} exp({-block.fit.rate:.3f} x), R² = {block.fit.r_squared:.2f}'
        axes.plot(smooth, block.fit(smooth), '-', color=colour, linewidth=1.5, label=label)
    axes.set_xlabel('lag' if blocks[0].axis == 'lag' else 'layer')
    axes.set_ylabel('L1 norm of the weights for a map')
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize='small', frameon=False)
    axes.set_title(title)
    return figure


def plot_segment_views(views: Sequence[SegmentView]) -> Figure:
    """Draw what the output segments of CRC layers see: shares of the input segments, and radii.

    Args:
        views (Sequence[SegmentView]): One layer each.

    Returns:
        Figure: A column for each layer; no window is opened.
    """
    figure = Figure(figsize=(max(3.2 * len(views), 4.0), 5.2), layout='constrained')
    grid = figure.subplots(2, len(views), squeeze=False)
    for view, (shares, radii) in zip(views, grid.T):
        # squared gradients fall fast: their root shows more
        shares.imshow(view.influence**0.5, cmap='viridis', vmin=0)
        shares.set_title(view.name, fontsize='medium')
        shares.set_xlabel('input segment')
        radii.plot(np.arange(len(view.radius)), view.radius, 'o-', color=COLOURS[0], markersize=4)
        radii.set_xlabel('output segment')
        radii.set_ylim(bottom=0)
        radii.grid(alpha=0.3)
        radii.spines[['top', 'right']].set_visible(False)
        for axes in (shares, radii):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylabel('output segment')
    grid[1, 0].set_ylabel('radius in pixels')
    figure.suptitle('Root of the share in the squared gradient; radius of the effective receptive field')
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, making folders; the format is that of the suffix (png, pdf, svg)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
