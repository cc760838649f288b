"""Figures of the measurements in this package. Needs matplotlib, which MMEngine depends on.

Every function returns a figure, and none opens a window. :func:`~mmrecur.engine.figures.save_figure` writes
figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from mmrecur.engine.figures import COLOURS, open_figure, style_axes

if TYPE_CHECKING:  # for annotations only
    from mmrecur.analysis.compare import Curve, Summary
    from mmrecur.analysis.effective_receptive_field import SegmentView
    from mmrecur.analysis.lag_weights import LagWeights
    from mmrecur.engine.hooks.gradient_flow import GradientRecord


def plot_lag_weights(blocks: Sequence[LagWeights], title: str = '') -> Figure:
    """Draw norms by lag or ordinal number with their exponential fits, as Figure 2 of the RLA paper.

    The axis of the norms is logarithmic if they differ by more than a factor of 100.

    Args:
        blocks (Sequence[LagWeights]): Norms to draw, one curve per entry, all with the same axis.
        title (str): Title of the figure. Defaults to ''.

    Returns:
        Figure: The figure.
    """
    figure, ((axes,),) = open_figure(6.4, 4.2)
    for i, block in enumerate(blocks):
        colour, x = COLOURS[i % len(COLOURS)], np.arange(1, len(block.norms) + 1)
        smooth = np.linspace(1, len(block.norms), 200)
        axes.plot(x, block.norms, 'o', color=colour, markersize=5, label=block.name.split('.')[-1])
        if block.fit is None:
            continue
        label = f'{block.fit.scale:.2f} exp({-block.fit.rate:.3f} x), R² = {block.fit.r_squared:.2f}'
        axes.plot(smooth, block.fit(smooth), '-', color=colour, linewidth=1.5, label=label)
    axes.set_xlabel('lag' if blocks[0].axis == 'lag' else 'layer')
    axes.set_ylabel('L1 norm of the weights for a map')
    norms = np.concatenate([block.norms for block in blocks])
    if norms.max() > 100 * norms.min():
        axes.set_yscale('log')  # on a linear axis, small norms would look like zero
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    axes.legend(fontsize='small', frameon=False)
    axes.set_title(title)
    return figure


def plot_segment_views(views: Sequence[SegmentView]) -> Figure:
    """Draw the receptive fields of CRC layers: influence of the input segments, and radius.

    Args:
        views (Sequence[SegmentView]): Views to draw, one layer each.

    Returns:
        Figure: The figure, one column per layer.
    """
    figure, grid = open_figure(max(3.2 * len(views), 4.0), 5.2, 2, len(views))
    for view, (shares, radii) in zip(views, grid.T):
        # squared gradients decay fast, so their root shows more detail
        shares.imshow(view.influence**0.5, cmap='viridis', vmin=0)
        shares.set_title(view.name, fontsize='medium')
        shares.set_xlabel('input segment')
        radii.plot(np.arange(len(view.radius)), view.radius, 'o-', color=COLOURS[0], markersize=4)
        radii.set_xlabel('output segment')
        radii.set_ylim(0, 1.1 * view.radius.max() or 1)  # the radius of 1x1 kernels is 0
        style_axes(radii)
        for axes in (shares, radii):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylabel('output segment')
    grid[1, 0].set_ylabel('radius in pixels')
    figure.suptitle('Root of the share in the squared gradient; radius of the effective receptive field')
    return figure


def plot_gradient_flow(runs: Mapping[str, Sequence[GradientRecord]], log: bool = True) -> Figure:
    """Draw the gradients of shared bases as overlapping bars, as Figure 3 of the filter basis paper.

    A value is darker the more records of the epoch reach it.

    Args:
        runs (Mapping[str, Sequence[GradientRecord]]): Records of an epoch by title of the run, one panel
            per run.
        log (bool): Use a logarithmic axis. Defaults to True.

    Returns:
        Figure: The figure.
    """
    columns = min(len(runs), 2)
    rows = -(-len(runs) // columns)
    figure, panels = open_figure(4.6 * columns, 3.2 * rows, rows, columns, sharey=True)
    panels = panels.flatten()
    for axes, (title, records) in zip(panels, runs.items()):
        names, opacity = list(records[0].maximum), max(0.03, 1.5 / len(records))
        x = np.arange(len(names))
        for record in records:
            axes.bar(x, [record.maximum[name] for name in names], 0.7, color=COLOURS[5], alpha=opacity)
        for record in records:
            axes.bar(x, [record.mean[name] for name in names], 0.7, color=COLOURS[0], alpha=opacity)
        axes.set_xticks(x, [name.replace('.basis', '') for name in names], rotation=30, ha='right')
        axes.set_title(f'{title}, {len(records)} records', fontsize='medium')
        style_axes(axes, grid='y')
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
    """Draw similarity matrices from 0 (dark) to 1 (bright), as Figure 4 of the filter basis paper.

    Args:
        matrices (Mapping[str, np.ndarray]): Square matrices by title, one panel per matrix.
        title (str): Title of the figure. Defaults to ''.

    Returns:
        Figure: The figure.
    """
    figure, (panels,) = open_figure(4.2 * len(matrices) + 0.6, 4.2, 1, len(matrices))
    for axes, (name, matrix) in zip(panels, matrices.items()):
        image = axes.imshow(matrix, cmap='inferno', vmin=0, vmax=1, interpolation='antialiased')
        axes.set_title(name, fontsize='medium')
        axes.set_xlabel('coefficients')
    panels[0].set_ylabel('coefficients')
    figure.colorbar(image, ax=panels, shrink=0.8, label='absolute cosine similarity')
    figure.suptitle(title)
    return figure


def plot_spectra(spectra: Mapping[str, Sequence[np.ndarray]], title: str = '') -> Figure:
    """Draw the eigenvalues of the Gram matrices of bases.

    Args:
        spectra (Mapping[str, Sequence[np.ndarray]]): Eigenvalues of each group in descending order, by
            name of the network.
        title (str): Title of the figure. Defaults to ''.

    Returns:
        Figure: The figure, one panel per group.
    """
    groups = len(next(iter(spectra.values())))
    figure, (panels,) = open_figure(3.4 * groups, 3.2, 1, groups, sharey=True)
    for i, (name, values) in enumerate(spectra.items()):
        for axes, eigenvalues in zip(panels, values):
            place = np.arange(1, len(eigenvalues) + 1)
            shown = np.maximum(eigenvalues, 1e-6)  # a logarithmic axis cannot show zeros
            axes.plot(place, shown, color=COLOURS[i % len(COLOURS)], label=name)
    for number, axes in enumerate(panels, 1):
        axes.axhline(1, color='grey', linewidth=0.8, linestyle=':')
        axes.set_title(f'group {number}', fontsize='medium')
        axes.set_xlabel('number')
        axes.set_yscale('log')
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.5), max(high, 2))  # hides rounding errors of orthonormal bases
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        style_axes(axes, grid=None)
    panels[0].set_ylabel('eigenvalue of B Bᵀ')
    panels[-1].legend(fontsize='small', frameon=False)
    figure.suptitle(title)
    return figure


def plot_curves(runs: Mapping[str, Sequence[Curve]], metric: str, marks: Sequence[float] = ()) -> Figure:
    """Draw the mean over seeds by epoch, with the range of the seeds as a band.

    Args:
        runs (Mapping[str, Sequence[Curve]]): Curves of all seeds by name. Curves of the same name have the
            same steps.
        metric (str): Label of the axis.
        marks (Sequence[float]): Epochs to mark with vertical lines. Defaults to ().

    Returns:
        Figure: The figure.
    """
    figure, ((axes,),) = open_figure(7, 4.5)
    for index, (name, curves) in enumerate(runs.items()):
        steps, seeds = curves[0].steps, list(zip(*(curve.values for curve in curves)))
        colour, dots = COLOURS[index % len(COLOURS)], 'o' if len(steps) <= 50 else ''
        label = name if len(curves) == 1 else f'{name} ({len(curves)} seeds)'
        means = [statistics.mean(values) for values in seeds]
        axes.plot(steps, means, color=colour, marker=dots, markersize=3, linewidth=1.5, label=label)
        low, high = [min(values) for values in seeds], [max(values) for values in seeds]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    for mark in marks:
        axes.axvline(mark, color='grey', linewidth=0.8, linestyle='--')
    axes.set_xlabel('epoch')
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    several = any(len(curves) > 1 for curves in runs.values())
    title = 'mean, range of the seeds' if several else None
    axes.legend(fontsize='small', title=title, title_fontsize='small', alignment='left', frameon=False)
    return figure


def plot_sizes(kinds: Mapping[str, Sequence[tuple[int, Summary]]], metric: str) -> Figure:
    """Draw the results of networks over their number of parameters, as Figure 1 of the RecNet paper.

    Args:
        kinds (Mapping[str, Sequence[tuple[int, Summary]]]): Number of parameters and results of each
            network, by kind. Each kind is a line. Bars show the range of the seeds.
        metric (str): Label of the axis.

    Returns:
        Figure: The figure.
    """
    figure, ((axes,),) = open_figure(7, 4.5)
    # labels are below the lowest line and above the other lines, so that fewer of them overlap
    lowest = min(kinds, key=lambda kind: statistics.mean(summary.mean for _, summary in kinds[kind]))
    for index, (kind, networks) in enumerate(kinds.items()):
        offset, alignment = ((5, -10), 'left') if kind == lowest else ((-5, 5), 'right')
        sizes, summaries = zip(*sorted(networks, key=lambda network: network[0]))
        means = [summary.mean for summary in summaries]
        below = [summary.mean - min(summary.final) for summary in summaries]
        above = [max(summary.final) - summary.mean for summary in summaries]
        style = dict(color=COLOURS[index % len(COLOURS)], marker='o', markersize=5, linewidth=1.5, capsize=3)
        axes.errorbar(sizes, means, [below, above], label=kind, **style)
        for size, mean, summary in zip(sizes, means, summaries):
            axes.annotate(
                summary.name, (size, mean), offset, textcoords='offset points', ha=alignment, fontsize=7
            )
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel('parameters')
    axes.set_ylabel(metric)
    style_axes(axes)
    axes.margins(x=0.16)
    axes.legend(frameon=False)
    return figure
