"""Drawing of what the other modules here compute. Needs matplotlib, which MMEngine brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .effective_receptive_field import SegmentView
from .gradient_flow import GradientRecord
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


def plot_gradient_flow(runs: Mapping[str, Sequence[GradientRecord]], log: bool = True) -> Figure:
    """Draw the gradients of shared bases, the records of an epoch on top of each other.

    As Figure 3 of the filter basis paper: the more records reach a value, the darker it is.

    Args:
        runs (Mapping[str, Sequence[GradientRecord]]): Records of an epoch by the run's title, a panel each.
        log (bool): Logarithmic axis. Defaults to True.

    Returns:
        Figure: The figure.
    """
    columns = min(len(runs), 2)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, (title, records) in zip(panels, runs.items()):
        names, opacity = list(records[0].maximum), max(0.03, 1.5 / len(records))
        x = np.arange(len(names))
        for record in records:
            axes.bar(x, [record.maximum[name] for name in names], 0.7, color=COLOURS[5], alpha=opacity)
        for record in records:
            axes.bar(x, [record.mean[name] for name in names], 0.7, color=COLOURS[0], alpha=opacity)
        axes.set_xticks(x, [name.replace('.basis', '') for name in names], rotation=30, ha='right')
        axes.set_title(f'{title}, {len(records)} records', fontsize='medium')
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='y', alpha=0.3)
        if log:
            axes.set_yscale('log')
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel('absolute gradient')
    handles = [Patch(color=COLOURS[5], label='maximum'), Patch(color=COLOURS[0], label='mean')]
    figure.legend(handles=handles, loc='outside lower center', ncols=2, frameon=False)
    return figure


def plot_similarity(matrices: Mapping[str, np.ndarray], title: str = '') -> Figure:
    """Draw matrices of similarities from 0, dark, to 1, bright, as Figure 4 of the filter basis paper.

    Args:
        matrices (Mapping[str, np.ndarray]): Square matrices by title, a panel each.
        title (str): Title of the whole. Defaults to none.

    Returns:
        Figure: The figure.
    """
    figure = Figure(figsize=(4.2 * len(matrices) + 0.6, 4.2), layout='constrained')
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items()):
        image = axes.imshow(matrix, cmap='inferno', vmin=0, vmax=1, interpolation='antialiased')
        axes.set_title(name, fontsize='medium')
        axes.set_xlabel('coefficients')
    panels[0].set_ylabel('coefficients')
    figure.colorbar(image, ax=panels, shrink=0.8, label='absolute cosine similarity')
    figure.suptitle(title)
    return figure


def plot_spectra(spectra: Mapping[str, Sequence[np.ndarray]], title: str = '') -> Figure:
    """Draw eigenvalues of the Gram matrices of bases.

    Args:
        spectra (Mapping[str, Sequence[np.ndarray]]): For each network by name, the eigenvalues of each of
            its groups in descending order.
        title (str): Title of the whole. Defaults to none.

    Returns:
        Figure: The figure, a panel for each group.
    """
    groups = len(next(iter(spectra.values())))
    figure = Figure(figsize=(3.4 * groups, 3.2), layout='constrained')
    panels = figure.subplots(1, groups, sharey=True, squeeze=False)[0]
    for i, (name, values) in enumerate(spectra.items()):
        for axes, eigenvalues in zip(panels, values):
            place = np.arange(1, len(eigenvalues) + 1)
            shown = np.maximum(eigenvalues, 1e-6)  # zeros have no place on the axis
            axes.plot(place, shown, color=COLOURS[i % len(COLOURS)], label=name)
    for number, axes in enumerate(panels, 1):
        axes.axhline(1, color='grey', linewidth=0.8, linestyle=':')
        axes.set_title(f'group {number}', fontsize='medium')
        axes.set_xlabel('number')
        axes.set_yscale('log')
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.5), max(high, 2))  # not the rounding of a basis that is orthonormal
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('eigenvalue of B Bᵀ')
    panels[-1].legend(fontsize='small', frameon=False)
    figure.suptitle(title)
    return figure
