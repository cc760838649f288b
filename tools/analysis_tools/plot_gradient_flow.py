"""Draw the gradients that reach shared filter bases during an epoch.

RUN is the folder of a run with dict(type='mmrecur.GradientFlowHook') in custom_hooks, or TITLE=FOLDER. Each
run is drawn in its own panel. These commands reproduce Figure 3 of the filter basis paper, with and without
the norm after the bases and the orthogonality penalty:

    C=configs/resnet_shared/resnet34-s16u1_1xb128_cifar100.py
    python tools/train.py $C --work-dir flow/neither --cfg-options model.backbone.basis_norm=False \\
        model.backbone.loss_ortho=None
    python tools/train.py $C --work-dir flow/norms --cfg-options model.backbone.loss_ortho=None
    python tools/train.py $C --work-dir flow/penalty --cfg-options model.backbone.basis_norm=False
    python tools/train.py $C --work-dir flow/both
    python tools/analysis_tools/plot_gradient_flow.py neither=flow/neither norms=flow/norms \\
        penalty=flow/penalty both=flow/both --epoch 3 --out gradient_flow.png
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import json
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.gradient_flow import of_epoch, read_records
from mmrecur.analysis.plots import plot_gradient_flow
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.engine.figures import picture_path, save_figure
from mmrecur.engine.hooks.gradient_flow import GradientRecord
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder, or TITLE=FOLDER')
    parser.add_argument(
        '--epoch', type=int, default=-1, help='epoch, counted from 0; default: -1, the last one'
    )
    parser.add_argument('--out', type=picture_path, help='write the plot to this file: png, pdf or svg')
    parser.add_argument(
        '--linear', action='store_true', help='use a linear axis instead of a logarithmic one'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(argv)


def summarise(records: list[GradientRecord]) -> dict[str, dict[str, float]]:
    """Return the largest, the mean of the largest, and the mean gradient of each basis in an epoch."""
    return {
        name: dict(
            largest=max(record.maximum[name] for record in records),
            mean_of_largest=fmean(record.maximum[name] for record in records),
            mean=fmean(record.mean[name] for record in records),
        )
        for name in records[0].maximum
    }


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    runs = {}
    for run in args.runs:
        title, _, folder = run.rpartition('=')
        try:
            runs[title or Path(folder).name] = of_epoch(read_records(folder), args.epoch)
        except (FileNotFoundError, ValueError) as error:
            raise ToolError(f'{run}: {error}') from error
    summary = {title: summarise(records) for title, records in runs.items()}
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        table = Table('run', 'basis', 'largest', 'mean of the largest', 'mean', box=box.SIMPLE_HEAD)
        for title, bases in summary.items():
            for name, values in bases.items():
                table.add_row(title, name, *(f'{value:.3g}' for value in values.values()))
        Console(markup=False).print(table)
    if args.out:
        save_figure(plot_gradient_flow(runs, log=not args.linear), args.out)


if __name__ == '__main__':
    with clean_errors():
        main()
