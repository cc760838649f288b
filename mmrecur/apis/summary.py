"""What a run leaves behind, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.runner import Runner
from rich import box
from rich.console import Console
from rich.table import Table


def final_metrics(runner: Runner) -> dict[str, float]:
    """Collect the values of the last validation.

    Args:
        runner (Runner): The runner, after its training.

    Returns:
        dict[str, float]: Values by name; empty if there was no validation.
    """
    prefix = 'val/'
    return {
        name.removeprefix(prefix): float(values.current())
        for name, values in runner.message_hub.log_scalars.items()
        if name.startswith(prefix) and not name.endswith(('/time', '/data_time'))
    }


def training_results(runner: Runner) -> dict[str, str]:
    """Collect the files that a training wrote.

    Args:
        runner (Runner): The runner, after its training.

    Returns:
        dict[str, str]: Paths by what they are; only files that exist.
    """
    info = runner.message_hub.runtime_info
    best = {name: path for name, path in info.items() if name.startswith('best_ckpt') and path}
    logs = Path(runner.log_dir)
    results = {'checkpoint': str(info.get('last_ckpt', ''))}
    for name, path in best.items():
        # With several indicators the names are best_ckpt_INDICATOR.
        results[f'best checkpoint {name[len("best_ckpt_") :]}'.strip()] = str(path)
    results['log'] = str(logs / f'{runner.timestamp}.log')
    results['metrics'] = str(logs / 'vis_data' / 'scalars.json')
    if runner.cfg.filename:
        results['config'] = str(Path(runner.work_dir) / Path(runner.cfg.filename).name)
    return {name: path for name, path in results.items() if path and Path(path).is_file()}


def print_metrics(metrics: Mapping[str, Any], title: str) -> None:
    """Print metrics as a table.

    Args:
        metrics (Mapping): Values by name.
        title (str): The table's title.
    """
    table = Table('metric', 'value', title=title, box=box.SIMPLE, title_justify='left')
    table.columns[1].justify = 'right'
    for name, value in metrics.items():
        table.add_row(name, f'{value:.4f}' if isinstance(value, float) else str(value))
    Console(soft_wrap=True, markup=False).print(table)


def print_results(results: Mapping[str, str], extra: Sequence[tuple[str, str]] = ()) -> None:
    """Print where files are, a line each, never broken.

    Args:
        results (Mapping): Paths by what they are.
        extra (Sequence): More (name, path) pairs. Defaults to ().
    """
    lines = [*results.items(), *extra]
    width = max((len(name) for name, _ in lines), default=0)
    for name, path in lines:
        print(f'  {name:<{width}}  {path}', flush=True)
