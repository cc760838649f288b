"""Comparison of trainings with several configs and seeds, as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Curve:
    """Values of a metric over the validations of a run.

    Attributes:
        steps (tuple[int, ...]): Epoch or iteration of each validation, increasing.
        values (tuple[float, ...]): Value of the metric at each step.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curve(work_dir: str | Path, metric: str) -> Curve:
    """Read a metric from the logs of a run, which may have been resumed.

    Args:
        work_dir (str or Path): Work directory of the run.
        metric (str): Name as in the log, such as ``'accuracy/top1'`` or ``'coco/bbox_mAP'``.

    Returns:
        Curve: The values. The last value counts if a validation was repeated.

    Raises:
        ValueError: If no validation has logged the metric. The message lists the logged metrics.
    """
    points: dict[int, float] = {}
    names: set[str] = set()
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if 'lr' in record or 'loss' in record:
                continue  # a line of training
            names |= set(record)
            if metric in record:
                points[record['step']] = float(record[metric])
    if not points:
        allowed = ', '.join(sorted(names - {'step', 'time', 'data_time'})) or 'none was logged'
        raise ValueError(f'metric={metric!r} was not logged in {work_dir}, allowed: {allowed}')
    steps = sorted(points)
    return Curve(tuple(steps), tuple(points[step] for step in steps))


@dataclass(frozen=True)
class Summary:
    """Results of several seeds of one config.

    Attributes:
        name (str): Name of the config.
        final (tuple[float, ...]): Final value of each run.
        best (tuple[float, ...]): The best value of each run.
    """

    name: str
    final: tuple[float, ...]
    best: tuple[float, ...]

    @classmethod
    def of(cls, name: str, curves: Sequence[Curve]) -> Summary:
        """Summarise runs of one config."""
        return cls(name, tuple(c.values[-1] for c in curves), tuple(max(c.values) for c in curves))

    @property
    def mean(self) -> float:
        """float: Mean of the final values."""
        return statistics.mean(self.final)

    @property
    def spread(self) -> float:
        """float: Standard deviation of the final values over seeds (n - 1), 0 for a single one."""
        return statistics.stdev(self.final) if len(self.final) > 1 else 0.0


def print_summaries(summaries: Sequence[Summary], metric: str, parameters: Mapping[str, int]) -> None:
    """Print a table with a row for each config.

    Args:
        summaries (Sequence[Summary]): The rows. The last column compares each row with the first.
        metric (str): Name of the metric.
        parameters (Mapping[str, int]): Number of parameters by config name.
    """
    table = Table(title=metric, box=box.SIMPLE, title_justify='left')
    table.add_column('config', no_wrap=True)
    for column in ('parameters', 'final, each seed', 'mean', 'std', 'to the first'):
        table.add_column(column, justify='right', no_wrap=True)
    for summary in summaries:
        table.add_row(
            summary.name,
            f'{parameters[summary.name]:,}',
            '  '.join(f'{value:.2f}' for value in summary.final),
            f'{summary.mean:.2f}',
            f'{summary.spread:.2f}',
            '' if summary is summaries[0] else f'{summary.mean - summaries[0].mean:+.2f}',
        )
    Console(width=160, markup=False).print(table)
