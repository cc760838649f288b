"""Print the results of a recovery and draw them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.apis.recovery.swapped import ChosenPlan, Recovered
from mmrecur.engine.figures import COLOURS, open_figure, save_figure, style_axes
from mmrecur.engine.file_backend import AtomicLocalBackend

#: Number of steps over which the plotted error is averaged.
_WINDOW = 20
#: What each stage does.
_STAGES = {
    'start': 'grafted',
    'norms': 'norms re-estimated',
    'match': 'outputs matched',
    'gates': 'gates calibrated',
}


def print_plans(chosen: ChosenPlan, most: int = 12) -> None:
    """Print the best plans for several numbers of parameters, with the chosen one marked.

    Args:
        chosen (ChosenPlan): The plans.
        most (int): Number of plans to print. Defaults to 12.
    """
    table = Table('', 'parameters', 'kept', 'estimated error', 'options', box=box.SIMPLE)
    table.title, table.title_justify = 'Parameters against damage before the recovery', 'left'
    plans = chosen.frontier
    places = {round(i * (len(plans) - 1) / (most - 1)) for i in range(most)} | {plans.index(chosen.plan)}
    for plan in (plans[i] for i in sorted(places)):
        kept = plan.parameters / chosen.old_parameters
        mark = '>' if plan is chosen.plan else ''
        table.add_row(mark, f'{plan.parameters:,}', f'{kept:.1%}', f'{plan.damage:.3f}', str(plan))
    _console().print(table)


def print_recovery(recovered: Recovered) -> None:
    """Print a row for each stage: size, error, metrics and time.

    Args:
        recovered (Recovered): The recovery.
    """
    report, before = recovered.report, recovered.sizes[0]
    metrics = _main_metrics(recovered.teacher_metrics)
    columns = ('backbone', 'model', 'multiply-adds', 'error', *metrics, 'time')
    table = Table('', *columns, box=box.SIMPLE, title='Recovery', title_justify='left')
    table.add_row('plain', *_cells(before), '-', *_scores(recovered.teacher_metrics, metrics), '')
    for stage in report.stages:
        row = (f'{stage.error:.3f}', *_scores(stage.metrics, metrics), f'{stage.seconds:.0f} s')
        name = _STAGES[stage.name] if stage.is_kept else f'{_STAGES[stage.name]} (no gain, undone)'
        table.add_row(name, *_cells(recovered.sizes[1], before), *row)
    console = _console()
    console.print(table)
    last = report.stages[-1].errors
    console.print(f'Relative error of each output: {", ".join(f"{n} {e:.3f}" for n, e in last.items())}')
    for name, reason in recovered.skipped.items():
        console.print(f'Skipped: {name}: {reason}')


def _main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics to print: mean average precisions, or else the first three."""
    return [name for name in metrics if name.endswith('_mAP')] or list(metrics)[:3]


def _cells(
    sizes: tuple[int, int, int | None], before: tuple[int, int, int | None] | None = None
) -> list[str]:
    """Return parameters of backbone and model and multiply-adds, with the change if ``before`` is given."""
    cells = []
    for i, value in enumerate(sizes):
        if value is None:
            cells.append('-')
            continue
        text = f'{value:,}' if i < 2 else f'{value / 1e9:.2f} G'
        if before is not None and before[i]:
            text += f' ({100 * (value / before[i] - 1):+.0f} %)'
        cells.append(text)
    return cells


def _scores(metrics: Mapping[str, float], names: list[str]) -> list[str]:
    return [f'{metrics[name]:.3f}' if name in metrics else '-' for name in names]


def _console() -> Console:
    return Console(width=150, markup=False, highlight=False)


def write_recovery(recovered: Recovered, chosen: ChosenPlan | None, out: Path) -> dict[str, str]:
    """Write the report of a recovery and its figure beside the config.

    Args:
        recovered (Recovered): The recovery.
        chosen (ChosenPlan, optional): The choice of the plan, if there was one.
        out (Path): The config. Names of the files begin like its name.

    Returns:
        dict[str, str]: Paths of the files, by kind.
    """
    report, figure = out.with_suffix('.recovery.json'), out.with_suffix('.recovery.png')
    values = dict(
        recovery=recovered.report.to_dict(),
        plain=recovered.teacher_metrics,
        sizes=[dict(zip(('backbone', 'model', 'multiply_adds'), sizes)) for sizes in recovered.sizes],
        skipped=recovered.skipped,
    )
    AtomicLocalBackend().put_text(json.dumps(values, indent=1), report)
    save_figure(plot_recovery(recovered, chosen), figure)
    return {'recovery': str(report), 'figure': str(figure)}


def plot_recovery(recovered: Recovered, chosen: ChosenPlan | None = None) -> Figure:
    """Draw the error over the steps and, if a plan was chosen, the parameters against the damage.

    Args:
        recovered (Recovered): The recovery.
        chosen (ChosenPlan, optional): The choice of the plan. Defaults to None.

    Returns:
        Figure: The figure.
    """
    figure, ((axes, *more),) = open_figure(
        5.4 if chosen is None else 10.8, 3.6, 1, 1 if chosen is None else 2
    )
    history = recovered.report.history
    smooth = [
        (sum(history[max(0, i - _WINDOW) : i + 1]) / len(history[max(0, i - _WINDOW) : i + 1])) ** 0.5
        for i in range(len(history))
    ]
    axes.plot(range(1, len(history) + 1), smooth, color=COLOURS[0], label='each step, in training mode')
    stages = [stage for stage in recovered.report.stages if stage.is_kept]
    for stage, colour in zip(stages, COLOURS[1:]):
        axes.axhline(stage.error, color=colour, linestyle='--', linewidth=1, label=_STAGES[stage.name])
    axes.set(xlabel='step', ylabel='relative error of the outputs', ylim=(0, None))
    axes.legend(frameon=False, fontsize='small')
    style_axes(axes)
    for plan_axes in more:
        kept = [plan.parameters / chosen.old_parameters for plan in chosen.frontier]
        plan_axes.plot(kept, [plan.damage for plan in chosen.frontier], '.-', color=COLOURS[0])
        place = (chosen.plan.parameters / chosen.old_parameters, chosen.plan.damage)
        plan_axes.plot(*place, 'o', color=COLOURS[1], label='chosen')
        plan_axes.plot(place[0], recovered.report.error, 'o', color=COLOURS[2], label='chosen, recovered')
        plan_axes.xaxis.set_major_formatter(PercentFormatter(1))
        plan_axes.set(xlabel='parameters kept', ylabel='relative error of the outputs', ylim=(0, None))
        plan_axes.legend(frameon=False, fontsize='small')
        style_axes(plan_axes)
    return figure
