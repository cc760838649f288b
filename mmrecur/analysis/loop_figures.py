"""Figures of networks with gated loops: iterations, easy and hard images, and maps at the gates.

Figures 7 to 9 of Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmrecur.analysis.gate_maps import GateMaps
from mmrecur.analysis.loop_times import LoopTimes
from mmrecur.engine.figures import COLOURS, open_figure, style_axes


def plot_loop_times(times: LoopTimes) -> Figure:
    """Draw the distribution of iterations, as in Figure 8 of the DR-ResNet paper.

    The upper panel shows all loops together, the lower panel each loop.

    Args:
        times (LoopTimes): Iterations for at least one image.

    Returns:
        Figure: The figure.
    """
    totals, rows = times.totals, len(times.counts)
    figure = Figure(figsize=(7.2, 3.6 + 0.28 * rows), layout='constrained')
    above, below = figure.subplots(2, 1, height_ratios=(3.0, 0.28 * rows + 0.4))
    shares = np.bincount(totals, minlength=times.limit + 1) / len(totals)
    above.bar(np.arange(len(shares)), shares, 0.85, color=COLOURS[0])
    above.axvline(totals.mean(), color=COLOURS[1], linewidth=1.5)
    figures = f'mean {totals.mean():.2f}, standard deviation {totals.std():.2f}'
    above.set_title(f'{len(totals):,} images: {figures}', fontsize='medium')
    above.set_xlabel(f'iterations of all loops, {times.limit} at most')
    above.set_ylabel('share of the images')
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    most = max(times.limits.values())
    colours = colormaps['viridis'](np.linspace(0.05, 0.95, most + 1))
    for row, counts in enumerate(times.counts.values()):
        shares = np.bincount(counts, minlength=most + 1) / len(counts)
        starts = np.cumsum(shares) - shares
        below.barh(row, shares, 0.8, left=starts, color=colours)
    below.set_yticks(range(rows), [*times.counts], fontsize='small')
    below.invert_yaxis()
    below.set_xlim(0, 1)
    below.set_xlabel('share of the images, by the iterations of each loop')
    for axes in (above, below):
        style_axes(axes, grid=None)
    handles = [Patch(color=colour, label=str(k)) for k, colour in enumerate(colours)]
    figure.legend(
        handles=handles, loc='outside lower center', ncols=most + 1, frameon=False, title='iterations'
    )
    return figure


def plot_easy_and_hard(
    easy: Sequence[tuple[np.ndarray, int]], hard: Sequence[tuple[np.ndarray, int]], limit: int
) -> Figure:
    """Draw easy and hard images with their numbers of iterations, as in Figure 9 of the DR-ResNet paper.

    Args:
        easy (Sequence[tuple]): Images with the fewest iterations: RGB pixels of shape (H, W, 3), uint8, and
            the number of iterations of all loops together.
        hard (Sequence[tuple]): Images with the most iterations; may be empty.
        limit (int): Maximum number of iterations of all loops together.

    Returns:
        Figure: The easy images above the hard ones, in rows of up to ten.
    """
    titles = (f'easy: fewest of {limit} iterations', f'hard: most of {limit} iterations')
    groups = [(title, images) for title, images in zip(titles, (easy, hard)) if images]
    columns = min(10, len(easy))
    heights = [-(-len(images) // columns) for _, images in groups]
    width = max(1.15 * columns, 4.2)
    figure = Figure(figsize=(width, 1.4 * sum(heights) + 0.6), layout='constrained')
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (title, images), rows in zip(parts, groups, heights):
        part.suptitle(title, fontsize='medium')
        panels = part.subplots(rows, columns, squeeze=False).flatten()
        for axes, (image, iterations) in zip(panels, images):
            # show the pixels of small images unsmoothed
            axes.imshow(image, interpolation='nearest' if max(image.shape) <= 64 else 'antialiased')
            axes.set_xlabel(str(iterations), labelpad=2)
            axes.set_xticks([])
            axes.set_yticks([])
        for axes in panels[len(images) :]:
            axes.set_visible(False)
    return figure


def plot_gate_maps(maps: Sequence[GateMaps]) -> Figure:
    """Draw the statistics of passed and skipped maps, as in Figure 7 of the DR-ResNet paper.

    The upper row shows the mean of each channel, the lower row the variance.

    Args:
        maps (Sequence[GateMaps]): Statistics at one or more gates, each with passed and skipped maps. Each
            gate gets a column.

    Returns:
        Figure: The figure.
    """
    figure, grid = open_figure(5.6 * len(maps), 5.2, 2, len(maps), sharex='col')
    for gate, column in zip(maps, grid.T):
        kinds = {
            f'passed, {gate.passed.images:,} maps': gate.passed,
            f'skipped, {gate.skipped.images:,} maps': gate.skipped,
        }
        # with many channels, lines would hide each other
        style = dict(linewidth=0.8) if len(gate.passed.mean) <= 128 else dict(linestyle='', marker='.')
        for (label, statistics), colour in zip(kinds.items(), COLOURS):
            for axes, values in zip(column, (statistics.mean, statistics.variance)):
                axes.plot(values, color=colour, label=label, alpha=0.7, markersize=2.5, **style)
        title = f'{gate.block}, iteration {gate.iteration + 1}: discrepancy {gate.discrepancy():.2f}'
        column[0].set_title(title, fontsize='medium')
        column[1].set_xlabel('channel')
        column[0].legend(fontsize='small', markerscale=3, framealpha=0.9, edgecolor='none')
        for axes in column:
            style_axes(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylabel('mean')
    grid[1, 0].set_ylabel('variance')
    return figure
