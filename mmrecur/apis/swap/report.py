"""Print the report of a swap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.apis.swap.edits import DELETED, Edit
from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.start import EXACT
from mmrecur.apis.swap.trial import Trial


def print_swap(swap: Swap, trial: Trial) -> None:
    """Print the changes that a swap makes and the results of its trial.

    Args:
        swap (Swap): The swap.
        trial (Trial): Its trial.
    """
    table = Table('', 'before', 'after', box=box.SIMPLE, title='Backbone swapped', title_justify='left')
    table.add_row('backbone', swap.old, swap.new)
    for name, (before, after) in {
        'its parameters': trial.backbone_parameters,
        "the model's": trial.parameters,
    }.items():
        table.add_row(name, f'{before:,}', f'{after:,} ({100 * (after / before - 1):+.1f} %)')
    for edit in (*swap.unfrozen, *swap.edits):
        if edit.path != (*swap.target.path, 'backbone'):
            table.add_row(edit.place, *_values(edit))
    console = Console(width=118, markup=False, highlight=False)
    console.print(table)
    notes = [*swap.notes, *(trial.grafted.notes if trial.grafted else ())]
    for line in [_weights(swap, trial), _step(trial), *(f'Note: {note}.' for note in notes)]:
        console.print(line, soft_wrap=True)


def _values(edit: Edit) -> tuple[str, str]:
    """Return the values before and after as text; of an extended list, only the added items."""
    before, after = edit.before, edit.after
    if edit.path == ('custom_imports',):
        before, after = (before or {}).get('imports'), after['imports']
    elif isinstance(after, list) and after and isinstance(after[-1], dict):
        after = [item for item in after if item not in (before or [])]
        return '-', ', '.join(f'{_text(item)} added' for item in after)
    return _text(before), _text(after)


def _text(value: Any) -> str:
    if value is None or value is DELETED:
        return '-'
    if isinstance(value, dict) and 'type' in value:
        args = ', '.join(f'{key}={item!r}' for key, item in value.items() if key != 'type')
        return f'{value["type"]}({args})'
    return str(value).removeprefix(f'{Path.cwd()}/')


def _weights(swap: Swap, trial: Trial) -> str:
    if trial.grafted is not None and swap.start.kind == 'random':
        return 'Weights: random in the backbone; the other parts from the checkpoint.'
    if trial.grafted is not None:
        return f'Weights: the checkpoint, grafted: {_comparison(trial.grafted.difference)}'
    start, fit = swap.start, swap.fit
    if start.kind == 'random':
        return 'Weights: random.'
    text = f'Weights: {start.checkpoint}, grafted when training starts.'
    if fit.difference is not None:
        how = 'Tried now' if fit.is_checked else 'Tried with random weights'
        text = f'{text} {how}: {_comparison(fit.difference)}'
    return text


def _comparison(difference: float) -> str:
    where = f'features on an image differ by {difference:.1e} of the largest'
    if difference <= EXACT:
        return f'the same function as before\n  ({where}).'
    return f'not the same function as before, but the closest of this family\n  ({where}).'


def _step(trial: Trial) -> str:
    if trial.skipped is not None:
        return f'Training step: skipped. {trial.skipped}.'
    if trial.step is None:
        return 'Training step: skipped, because inputs cannot be made up for this kind of model.'
    losses = 'losses are finite'
    if trial.grafted is not None:  # of random weights, the values would mean nothing
        losses = ', '.join(f'{name} {value:.3g}' for name, value in trial.step.losses.items())
    count = trial.step.gradients
    return f'Training step: {losses}; all {count} trainable tensors of the backbone got a gradient.'
