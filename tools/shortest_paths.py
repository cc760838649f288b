"""Train the three networks of the shortest path task and plot their F1 scores.

    python tools/shortest_paths.py                                     # 5 phases of 50 epochs each
    python tools/shortest_paths.py --epochs 5 --examples 500 --models cnn scnn

Each network is trained by tools/train.py with configs/swrn/shortest-path_MODEL.py in WORK_DIR/MODEL. An
interrupted command continues when it is run again. WORK_DIR/curves.png shows the F1 score on validation
examples of the phase after every epoch (Figure 5b of the SWRN paper); curves.json contains the numbers.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mmrecur.analysis.compare import read_curve
from mmrecur.analysis.plots import plot_curves
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.summary import print_results
from mmrecur.datasets.shortest_path import CURRICULUM
from mmrecur.engine.figures import save_figure
from mmrecur.errors import ToolError

ROOT = Path(__file__).resolve().parents[1]
MODELS = {'cnn': 'CNN', 'scnn': 'SCNN', 'scnn-r': 'SCNN-R'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS), help='default: all')
    parser.add_argument('--work-dir', default='work_dirs/shortest-path', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, default=50, help='epochs of each phase (default: %(default)s)')
    parser.add_argument(
        '--examples', type=int, default=5000, help='examples of each phase (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    args = parser.parse_args(argv)
    for name in ('epochs', 'examples'):
        if getattr(args, name) < 1:
            parser.error(f'argument --{name}: {getattr(args, name)} given; allowed: 1 or more')
    return args


def train(model: str, work_dir: Path, args: argparse.Namespace) -> None:
    """Train a network through the rest of the curriculum."""
    config = ROOT / 'configs' / 'swrn' / f'shortest-path_{model}.py'
    # --cfg-options changes a single item of a list by its index.
    curriculum = {'cnn': 0, 'scnn': 0, 'scnn-r': 1}[model]
    options = [
        f'train_cfg.max_epochs={len(CURRICULUM) * args.epochs}',
        f'custom_hooks.{curriculum}.epochs_per_phase={args.epochs}',
        f'train_dataloader.dataset.num_examples={args.examples}',
        f'randomness.seed={args.seed}',
    ]
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir)]
    command += ['--resume', 'auto', '--num-pictures', '0', '--cfg-options', *options]
    if subprocess.run(command).returncode:
        raise ToolError(f'the training in {work_dir} failed; the same command resumes it')


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    runs = {}
    for model in args.models:
        train(model, work_dir / model, args)
        runs[MODELS[model]] = read_curve(work_dir / model, 'f1')
    marks = [args.epochs * phase for phase in range(1, len(CURRICULUM))]
    figure = plot_curves({name: [run] for name, run in runs.items()}, 'F1', [mark + 0.5 for mark in marks])
    picture = save_figure(figure, work_dir / 'curves.png')
    numbers = work_dir / 'curves.json'
    scores = {name: run.values for name, run in runs.items()}
    numbers.write_text(json.dumps(dict(epochs_per_phase=args.epochs, f1=scores), indent=2))
    for name, values in scores.items():
        ends = ', '.join(f'{values[mark - 1]:.3f}' for mark in (*marks, len(values)))
        print(f'{name}: F1 at the end of each phase {ends}')
    print_results({'curves': str(picture), 'numbers': str(numbers)})


if __name__ == '__main__':
    with clean_errors():
        main()
