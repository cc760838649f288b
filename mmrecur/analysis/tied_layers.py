"""Layer sequences of networks with tied layers, and the loops in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import nn

from mmrecur.models.backbones.swrn import SWRN
from mmrecur.models.layers.template_bank.bank import template_banks

#: A layer number, or a loop: the number of passes and its body.
Loop = int | tuple[int, tuple['Loop', ...]]


def layer_sequences(model: nn.Module) -> dict[str, list[int]]:
    """Return the layer that runs at each step of a network with tied layers.

    Args:
        model (nn.Module): A network with template banks, whose layers may be tied. It may contain an
            :class:`~mmrecur.models.backbones.SWRN`.

    Returns:
        dict[str, list[int]]: Layers in the order of execution, for each stage of an SWRN and for each bank of
        other networks. The number of a layer is the step, counted from 1, at which it first runs.
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
    """Return the row of a bank or the unshared layer that runs at each step of a stage."""
    shared = {}
    for name, places in stage.groups.items():
        rows = getattr(stage, name).rows
        shared.update({place: (name, i if rows is None else rows[i]) for i, place in enumerate(places)})
    places = [(i, layer) for i, block in enumerate(stage.blocks) for layer in block.SHAREABLE]
    return [shared.get(place, place) for place in places]


def _numbered(steps: Sequence) -> list[int]:
    return [steps.index(step) + 1 for step in steps]


def find_loops(sequence: Sequence[int]) -> tuple[Loop, ...]:
    """Write a sequence as loops, with as few layers as possible.

    Args:
        sequence (Sequence[int]): Layers in the order of execution.

    Returns:
        tuple: Layers and loops. A loop is the number of passes and its body. ``(1, 2, 3, 2, 3)``
        becomes ``(1, (2, (2, 3)))``.

    Example:
        >>> find_loops([1, 2, 3, 4, 3, 4, 3, 4])
        (1, 2, (3, (3, 4)))
    """
    steps = tuple(sequence)

    @cache
    def shortest(first: int, last: int) -> tuple[int, tuple[Loop, ...]]:
        """Return the cost and the loops of the shortest form of ``steps[first:last]``."""
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
    """Format loops as text.

    Args:
        loops (Sequence): Result of :func:`find_loops`.

    Returns:
        str: Text such as ``'1 2 (3 4) x 3'``.
    """
    parts = []
    for item in loops:
        parts.append(str(item) if isinstance(item, int) else f'({describe_loops(item[1])}) x {item[0]}')
    return ' '.join(parts)
