"""What a swap changed, for people to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.trial import Trial
from mmrecur.apis.swap.weights import EXACT


def print_swap(swap: Swap, trial: Trial) -> None:
    """Print what a swap changed and what was seen of the new model.

    Args:
        swap (Swap): The swap.
        trial (Trial): What was seen.
    """
    table = Table('', 'before', 'now', box=box.SIMPLE, title='Backbone swapped', title_justify='left')
    table.add_row('backbone', swap.old, swap.new)
    for name, (before, now) in {
        'its parameters': trial.backbone_parameters,
        "the model's": trial.parameters,
    }.items():
        table.add_row(name, f'{before:,}', f'{now:,} ({100 * (now / before - 1):+.1f} %)')
    for place, before, now in swap.changes:
        table.add_row(place, _text(before), _text(now))
    console = Console(width=118, markup=False, highlight=False)
    console.print(table)
    for line in [_weights(swap, trial), _step(trial), *(f'Note: {note}.' for note in swap.notes)]:
        console.print(line, soft_wrap=True)


def _text(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, dict) and 'type' in value:
        args = ', '.join(f'{key}={item!r}' for key, item in value.items() if key != 'type')
        return f'{value["type"]}({args})'
    return str(value).removeprefix(f'{Path.cwd()}/')


def _weights(swap: Swap, trial: Trial) -> str:
    start = swap.start
    if trial.difference is not None:
        return f'Weights: the checkpoint, grafted: {_compared(trial.difference)}'
    if start.kind == 'random':
        return 'Weights: random.'
    text = f'Weights: {start.init_cfg["checkpoint"]}, grafted when training starts.'
    if swap.difference is not None:
        how = 'Tried now' if swap.is_checked else 'Tried with random ones'
        text = f'{text} {how}: {_compared(swap.difference)}'
    if swap.errors:
        low, high = (f'{f(swap.errors.values()):.1%}' for f in (min, max))
        text = f"{text}\n  Fit error ||W - W'|| / ||W|| from {low} to {high}, in {len(swap.errors)} places."
    return text


def _compared(difference: float) -> str:
    where = f'features on an image differ by {difference:.1e} of the largest'
    if difference <= EXACT:
        return f'the same function as before\n  ({where}).'
    return f'not the function from before, but the closest of this family\n  ({where}).'


def _step(trial: Trial) -> str:
    if trial.note is not None:
        return f'Training step: none was tried. {trial.note}.'
    if trial.losses is None:
        return 'Training step: none was tried, no inputs can be made up for this kind of model.'
    losses = 'losses are finite'
    if trial.report is not None:
        losses = ', '.join(f'{name} {value:.3g}' for name, value in trial.losses.items())
    return f'Training step: {losses}; all {trial.gradients} trainable tensors of the backbone got a gradient.'
