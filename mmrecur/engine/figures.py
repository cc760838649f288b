"""Open, style and write figures; the figure that a hook draws.

Needs matplotlib, which MMEngine depends on. Every function returns a figure, and none opens a window.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

#: Colours that colour-blind readers can distinguish (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')

#: Formats in which figures can be written.
SUFFIXES = ('.png', '.pdf', '.svg')


def open_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **sharing: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of axes.

    Args:
        width (float): Width in inches.
        height (float): Height in inches.
        rows (int): Number of rows. Defaults to 1.
        columns (int): Number of columns. Defaults to 1.
        **sharing: ``sharex`` and ``sharey`` of :meth:`matplotlib.figure.Figure.subplots`.

    Returns:
        tuple[Figure, np.ndarray]: The figure and its axes, shape (rows, columns).
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def style_axes(axes: Axes, grid: str | None = 'both') -> None:
    """Apply the common style to axes with curves or bars.

    Args:
        axes (Axes): The axes.
        grid (str, optional): Direction of the grid lines: ``'both'``, ``'x'`` or ``'y'``. None draws no grid.
            Defaults to 'both'.
    """
    axes.spines[['top', 'right']].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)


def picture_path(text: str) -> str:
    """Check the name of a figure; an argument type for command lines.

    Args:
        text (str): Argument from the command line.

    Returns:
        str: The argument, unchanged.

    Raises:
        argparse.ArgumentTypeError: If the suffix is not in ``SUFFIXES``.
    """
    if Path(text).suffix not in SUFFIXES:
        raise ArgumentTypeError(f'{text!r} given; allowed: a file that ends in {", ".join(SUFFIXES)}')
    return text


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, and create its folder if necessary.

    Args:
        figure (Figure): The figure.
        path (str or Path): File to write. Its suffix chooses the format: png, pdf or svg.

    Returns:
        Path: The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches='tight')
    return path


def plot_layer_similarity(columns: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Draw layer similarity matrices, one row per bank and one column per state. White is a similarity of 1.

    Args:
        columns (Mapping): Matrices of shape (L, L) by state, such as an epoch or a run, and by bank.

    Returns:
        Figure: The figure.
    """
    banks = list(next(iter(columns.values())))
    size = 1.6
    width, height = size * len(columns) + 1.4, size * len(banks) + 0.4
    figure, axes = open_figure(width, height, len(banks), len(columns))
    for column, (state, matrices) in enumerate(columns.items()):
        for row, bank in enumerate(banks):
            axis, matrix = axes[row][column], matrices[bank]
            image = axis.imshow(matrix.numpy(), cmap='gray', vmin=0, vmax=1)
            axis.set_xticks([0, len(matrix) - 1], [1, len(matrix)], fontsize=7)
            axis.set_yticks([0, len(matrix) - 1], [1, len(matrix)], fontsize=7)
            if row == 0:
                axis.set_title(state, fontsize=8)
            if column == 0:
                axis.set_ylabel(bank, fontsize=8)
    figure.colorbar(image, ax=axes, label='similarity', shrink=0.8)
    return figure
