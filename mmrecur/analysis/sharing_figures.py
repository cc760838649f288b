"""Pictures of shared weights: similarity matrices, loops, curves. Drawn without a display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from torch import Tensor

#: Colours of layers that run more than once, and of the others.
_LOOP_COLOURS = ('tab:blue', 'tab:red', 'tab:green', 'tab:orange', 'tab:purple', 'tab:brown', 'tab:cyan')
_PLAIN = '0.8'


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=120, bbox_inches='tight')
    return path


def draw_similarity(columns: Mapping[str, Mapping[str, Tensor]], path: str | Path) -> Path:
    """Draw similarity matrices, white for 1: banks from top to bottom, states from left to right.

    Args:
        columns (Mapping): State, such as an epoch or a run -> bank -> matrix of shape (L, L).
        path (str or Path): PNG file to write.

    Returns:
        Path: The file.
    """
    banks = list(next(iter(columns.values())))
    size = 1.6
    figure = Figure(figsize=(size * len(columns) + 1.4, size * len(banks) + 0.4), layout='constrained')
    axes = figure.subplots(len(banks), len(columns), squeeze=False)
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
    return _save(figure, path)


def draw_loops(sequences: Mapping[str, Sequence[int]], path: str | Path) -> Path:
    """Draw which layers a network runs through: circles for layers, arrows for what follows.

    A coloured layer runs as often as is written in it; an arrow is labelled with how often it is taken, if
    more than once. Arrows below the layers go back.

    Args:
        sequences (Mapping): By stage the layers in the order in which they run.
        path (str or Path): PNG file to write.

    Returns:
        Path: The file.
    """
    most = max(len(set(sequence)) for sequence in sequences.values())
    figure = Figure(figsize=(1.1 * most + 2.2, 1.6 * len(sequences)), layout='constrained')
    axes = figure.subplots(len(sequences), 1, squeeze=False)[:, 0]
    for axis, (stage, sequence) in zip(axes, sequences.items()):
        _draw_sequence(axis, sequence)
        axis.set_xlim(-1.2, most + 0.2)
        axis.set_ylim(-1.2, 0.8)
        axis.set_aspect('equal')
        axis.axis('off')
        axis.set_title(stage, loc='left', fontsize=9)
    return _save(figure, path)


def _draw_sequence(axis: Axes, sequence: Sequence[int]) -> None:
    order = list(dict.fromkeys(sequence))
    passes = Counter(sequence)
    looped = [layer for layer in order if passes[layer] > 1]
    place = {layer: x for x, layer in enumerate(order)}
    for layer, x in place.items():
        colour = _LOOP_COLOURS[looped.index(layer) % len(_LOOP_COLOURS)] if layer in looped else _PLAIN
        axis.add_patch(Circle((x, 0), 0.26, facecolor=colour, edgecolor='black', alpha=0.75, zorder=3))
        text = f'{layer}\n{passes[layer]}×' if layer in looped else str(layer)
        axis.text(x, 0, text, ha='center', va='center', fontsize=8, zorder=4)
    _arrow(axis, -0.8, -0.26, 0, 1)
    _arrow(axis, place[sequence[-1]] + 0.22, place[sequence[-1]] + 0.8, 0, 1, level=0.14)
    for (a, b), count in Counter(zip(sequence, sequence[1:])).items():
        start, end = place[a], place[b]
        if end == start + 1:
            _arrow(axis, start + 0.26, end - 0.26, 0, count)
        elif end == start:
            _arrow(axis, start + 0.16, start - 0.16, 2.2, count, level=0.2)
        else:
            # the farther, the flatter: arcs of one height
            bend = 1.1 / abs(end - start) ** 0.5
            _arrow(axis, start, end, -bend, count, level=-0.26 if end < start else 0.26)


def _arrow(axis: Axes, start: float, end: float, bend: float, count: int, level: float = 0.0) -> None:
    """An arrow between two places; it bends to its left by a share of its length."""
    axis.add_patch(
        FancyArrowPatch(
            (start, level),
            (end, level),
            connectionstyle=f'arc3,rad={bend}',
            arrowstyle='-|>',
            mutation_scale=9,
            shrinkA=0,
            shrinkB=0,
        )
    )
    if count > 1:
        # the middle of the quadratic curve that the arc is
        height = level - bend * (end - start) / 2 if bend else level
        offset = 0.13 if height >= 0 else -0.13
        axis.text((start + end) / 2, height + offset, f'{count}×', ha='center', va='center', fontsize=7)


def draw_curves(
    curves: Mapping[str, Sequence[float]], path: str | Path, marks: Sequence[int] = (), ylabel: str = 'F1'
) -> Path:
    """Draw values by epoch.

    Args:
        curves (Mapping): Name -> value after each epoch, from the first.
        path (str or Path): PNG file to write.
        marks (Sequence[int]): Epochs after which something changes. Defaults to none.
        ylabel (str): What the values are. Defaults to 'F1'.

    Returns:
        Path: The file.
    """
    figure = Figure(figsize=(6, 3.6), layout='constrained')
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, label=name, linewidth=1.2)
    for mark in marks:
        axis.axvline(mark + 0.5, color='0.6', linewidth=0.8, linestyle='--')
    axis.set_xlabel('epoch')
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend()
    return _save(figure, path)
