"""Figures of networks with tied layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch

from mmrecur.engine.figures import COLOURS, open_figure

#: Grey level of layers that run once.
_PLAIN = '0.8'


def plot_loops(sequences: Mapping[str, Sequence[int]]) -> Figure:
    """Draw the order in which a network runs its layers, as circles connected by arrows.

    Layers that run more than once are coloured and labelled with the number of passes. Arrows are labelled
    if they are followed more than once. Arrows below the layers lead back.

    Args:
        sequences (Mapping): Layers in the order of execution, by stage.

    Returns:
        Figure: The figure.
    """
    most = max(len(set(sequence)) for sequence in sequences.values())
    jumps = [jump for sequence in sequences.values() for jump in _jumps(sequence)]
    low = -max(1.2, 0.5 + _arc_height(-min(jumps)))
    high = 0.8 if max(jumps) <= 1 else 0.5 + _arc_height(max(jumps))
    figure, axes = open_figure(1.1 * most + 2.2, 0.8 * (high - low) * len(sequences), len(sequences))
    for axis, (stage, sequence) in zip(axes[:, 0], sequences.items()):
        _draw_sequence(axis, sequence)
        axis.set_xlim(-1.2, most + 0.2)
        axis.set_ylim(low, high)
        axis.set_aspect('equal')
        axis.axis('off')
        axis.set_title(stage, loc='left', fontsize=9)
    return figure


def _jumps(sequence: Sequence[int]) -> list[int]:
    """Return the number of places from each layer to the next, positive to the right; starts with 0."""
    place = {layer: x for x, layer in enumerate(dict.fromkeys(sequence))}
    return [0, *(place[b] - place[a] for a, b in zip(sequence, sequence[1:]))]


def _arc_height(distance: int) -> float:
    """Return the height of an arc, which grows with the square root of the distance."""
    return 0.55 * max(distance, 0) ** 0.5


def _draw_sequence(axis: Axes, sequence: Sequence[int]) -> None:
    order = list(dict.fromkeys(sequence))
    passes = Counter(sequence)
    looped = [layer for layer in order if passes[layer] > 1]
    place = {layer: x for x, layer in enumerate(order)}
    for layer, x in place.items():
        colour = COLOURS[looped.index(layer) % len(COLOURS)] if layer in looped else _PLAIN
        axis.add_patch(Circle((x, 0), 0.26, facecolor=colour, edgecolor='black', alpha=0.75, zorder=3))
        text = f'{layer}\n{passes[layer]}×' if layer in looped else str(layer)
        axis.text(x, 0, text, ha='center', va='center', fontsize=8, zorder=4)
    _arrow(axis, -0.8, -0.26, 0, 1)
    last = place[sequence[-1]]
    if last + 1 == len(order):
        _arrow(axis, last + 0.26, last + 0.8, 0, 1)
    else:  # to the side, since a straight arrow would seem to lead to the next layer
        axis.add_patch(_arrow_patch((last + 0.17, 0.2), (last + 0.42, 0.6)))
        axis.text(last + 0.45, 0.63, 'out', ha='left', va='center', fontsize=7)
    for (a, b), count in Counter(zip(sequence, sequence[1:])).items():
        start, end = place[a], place[b]
        if end == start + 1:
            _arrow(axis, start + 0.26, end - 0.26, 0, count)
        elif end == start:
            _arrow(axis, start + 0.16, start - 0.16, 2.2, count, level=0.2)
        else:
            bend = 2 * _arc_height(abs(end - start)) / abs(end - start)
            _arrow(axis, start, end, -bend, count, level=-0.26 if end < start else 0.26)


def _arrow(axis: Axes, start: float, end: float, bend: float, count: int, level: float = 0.0) -> None:
    """Add an arrow between two places that bends to its left by a share of its length."""
    axis.add_patch(_arrow_patch((start, level), (end, level), bend))
    if count > 1:
        # the arc is a quadratic curve, this is its middle
        height = level - bend * (end - start) / 2 if bend else level
        offset = 0.13 if height >= 0 else -0.13
        axis.text((start + end) / 2, height + offset, f'{count}×', ha='center', va='center', fontsize=7)


def _arrow_patch(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> FancyArrowPatch:
    style = dict(arrowstyle='-|>', mutation_scale=9, shrinkA=0, shrinkB=0)
    return FancyArrowPatch(start, end, connectionstyle=f'arc3,rad={bend}', **style)
