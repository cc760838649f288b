"""Summaries of runs, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich import box
from rich.console import Console
from rich.table import Table


def run_summary(runner: Runner, loops: Sequence[str]) -> dict[str, str]:
    """Describe a run that is about to start.

    Args:
        runner (Runner): The runner, with its model and loops built.
        loops (Sequence[str]): Loops that will run: 'train', 'val', 'test'.

    Returns:
        dict[str, str]: Values by name.
    """
    model = runner.model
    while hasattr(model, 'module'):  # distributed training, test-time augmentation
        model = model.module
    parts = [type(part).__name__ for part in (model, getattr(model, 'backbone', None)) if part is not None]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    summary = {}
    if runner.cfg.filename:
        summary['config'] = str(runner.cfg.filename)
    summary['model'] = f'{" with ".join(parts)}, {millions:.2f} million parameters'
    for name in loops:
        loader = getattr(getattr(runner, f'{name}_loop'), 'dataloader', None)
        if loader is not None:
            size = f'{len(loader.dataset)} images' if hasattr(loader.dataset, '__len__') else 'images'
            batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
            summary[f'{name} data'] = f'{size} in batches of {batch}' if batch else size
    if 'train' in loops:
        loop, start, end = runner.train_loop, '', f'iteration {runner.max_iters}'
        if isinstance(loop, EpochBasedTrainLoop):
            end = f'epoch {loop.max_epochs}, {end}'
        if runner.iter:
            start = f'from epoch {runner.epoch}, iteration {runner.iter}, '
        summary['training'] = f'{start}to {end}'
    if runner._load_from:
        what = 'resumed' if runner._resume else 'weights'
        summary[what] = str(runner._load_from)
    summary['device'] = _device_name(runner.world_size)
    summary['work dir'] = str(runner.work_dir)
    log = Path(runner.log_dir) / f'{runner.timestamp}.log'
    summary['log'] = f'{log} (with the config, the environment and all messages)'
    return summary


def _device_name(processes: int) -> str:
    device = get_device()
    if device == 'cuda':
        device = torch.cuda.get_device_name()
    elif device == 'cpu':
        threads = torch.get_num_threads()
        device = f'CPU, {threads} thread{"s" if threads > 1 else ""}'
    return device if processes == 1 else f'{processes} processes, each: {device}'


def final_metrics(runner: Runner) -> dict[str, float]:
    """Return the metrics of the last validation.

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
    """Return the files that a training wrote.

    Args:
        runner (Runner): The runner, after its training.

    Returns:
        dict[str, str]: Paths of existing files, by description.
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
    """Print the paths of files, one unbroken line each.

    Args:
        results (Mapping): Paths by description.
        extra (Sequence): More (name, path) pairs. Defaults to ().
    """
    lines = [*results.items(), *extra]
    width = max((len(name) for name, _ in lines), default=0)
    for name, path in lines:
        print(f'  {name:<{width}}  {path}', flush=True)
