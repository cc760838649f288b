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

#: Colours that colour-blind readers tell apart (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')

#: What figures can be written as.
SUFFIXES = ('.png', '.pdf', '.svg')


def open_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **sharing: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of axes.

    Args:
        width (float): In inches.
        height (float): In inches.
        rows (int): Axes from top to bottom. Defaults to 1.
        columns (int): Axes from left to right. Defaults to 1.
        **sharing: ``sharex`` and ``sharey`` of :meth:`matplotlib.figure.Figure.subplots`.

    Returns:
        tuple[Figure, np.ndarray]: The figure and its axes, shape (rows, columns).
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def style_axes(axes: Axes, grid: str | None = 'both') -> None:
    """Give axes with curves or bars the look of all of them.

    Args:
        axes (Axes): The axes.
        grid (str, optional): ``'both'``, ``'x'`` or ``'y'``: lines of the grid; None for none. Defaults to
            'both'.
    """
    axes.spines[['top', 'right']].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)


def picture_path(text: str) -> str:
    """Argument type of tools that draw.

    Args:
        text (str): What was given on the command line.

    Returns:
        str: The same.

    Raises:
        argparse.ArgumentTypeError: If it does not end as :func:`save_figure` needs it.
    """
    if Path(text).suffix not in SUFFIXES:
        raise ArgumentTypeError(f'{text!r} given; allowed: a file that ends in {", ".join(SUFFIXES)}')
    return text


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, making folders.

    Args:
        figure (Figure): The figure.
        path (str or Path): File to write; its suffix says in which format, png, pdf or svg.

    Returns:
        Path: The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches='tight')
    return path


def plot_layer_similarity(columns: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Draw similarity matrices, white for 1: banks from top to bottom, states from left to right.

    Args:
        columns (Mapping): State, such as an epoch or a run -> bank -> matrix of shape (L, L).

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
