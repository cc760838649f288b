"""The loops of a folded network, as sequences of layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import nn

from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import template_banks

#: A layer's number, or a number of passes with what they run through.
Loop = int | tuple[int, tuple['Loop', ...]]


def layer_sequences(model: nn.Module) -> dict[str, list[int]]:
    """Which layer computes at each step of a network with tied layers.

    Args:
        model (nn.Module): A network with template banks, folded or not; an :class:`SWRN` may be in it.

    Returns:
        dict[str, list[int]]: For each stage of an :class:`SWRN`, and for each bank of other networks, the
        layers in the order in which they run. A layer has the number, from 1, of the step at which it runs
        first.
    """
    sequences = {}
    inside: set[str] = set()
    for name, backbone in model.named_modules():
        if not isinstance(backbone, SWRN):
            continue
        prefix = f'{name}.' if name else ''
        inside.update(f'{prefix}{bank}' for bank in backbone.banks())
        for stage in backbone.stages:
            sequences[f'{prefix}{stage}'] = _numbered(_stage_steps(getattr(backbone, stage)))
    for name, bank in template_banks(model).items():
        if name not in inside:
            steps = range(bank.num_layers) if bank.rows is None else bank.rows
            sequences[name] = _numbered(list(steps))
    return sequences


def _stage_steps(stage: nn.Module) -> list[tuple]:
    """What runs at each step of a stage: a row of a bank, or a layer of its own."""
    shared = {}
    for name, places in stage.groups.items():
        rows = getattr(stage, name).rows
        shared.update({place: (name, i if rows is None else rows[i]) for i, place in enumerate(places)})
    places = [(i, layer) for i, block in enumerate(stage.blocks) for layer in block.SHAREABLE]
    return [shared.get(place, place) for place in places]


def _numbered(steps: Sequence) -> list[int]:
    return [steps.index(step) + 1 for step in steps]


def find_loops(sequence: Sequence[int]) -> tuple[Loop, ...]:
    """Write a sequence with as few layers as possible by repeating parts of it.

    Args:
        sequence (Sequence[int]): Layers in the order in which they run.

    Returns:
        tuple: Layers and loops; a loop is a number of passes and what they run through. ``(1, 2, 3, 2, 3)``
        becomes ``(1, (2, (2, 3)))``.

    Example:
        >>> find_loops([1, 2, 3, 4, 3, 4, 3, 4])
        (1, 2, (3, (3, 4)))
    """
    steps = tuple(sequence)

    @cache
    def shortest(first: int, last: int) -> tuple[int, tuple[Loop, ...]]:
        """Fewest layers that write the steps from ``first`` to before ``last``, and how."""
        length = last - first
        if length <= 1:
            return length, steps[first:last]
        cuts = range(first + 1, last)
        best = min((_joined(shortest(first, i), shortest(i, last)) for i in cuts), key=_cost)
        for period in range(1, length // 2 + 1):
            if length % period == 0 and steps[first : last - period] == steps[first + period : last]:
                cost, body = shortest(first, first + period)
                best = min(best, (cost, ((length // period, body),)), key=_cost)
        return best

    return shortest(0, len(steps))[1]


def _joined(a: tuple[int, tuple], b: tuple[int, tuple]) -> tuple[int, tuple]:
    return a[0] + b[0], a[1] + b[1]


def _cost(found: tuple[int, tuple]) -> tuple[int, int]:
    return found[0], len(found[1])


def describe_loops(loops: Sequence[Loop]) -> str:
    """Loops as text.

    Args:
        loops (Sequence): What :func:`find_loops` gives.

    Returns:
        str: Such as ``'1 2 (3 4) x 3'``.
    """
    parts = []
    for item in loops:
        parts.append(str(item) if isinstance(item, int) else f'({describe_loops(item[1])}) x {item[0]}')
    return ' '.join(parts)
