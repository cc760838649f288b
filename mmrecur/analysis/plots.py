"""Drawing of what the other modules here compute. Needs matplotlib, which MMEngine brings along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, making folders; the format is that of the suffix (png, pdf, svg)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
