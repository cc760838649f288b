"""Train several configs with several seeds; print and plot the results.

    python tools/compare_training.py configs/demo/resnet20-mini_cifar10.py \\
        configs/demo/rla-resnet20-mini_cifar10.py --seeds 0 1 2 --plot compared.png

--plot shows the metric over the epochs, --size-plot over the number of parameters. The size plot joins
configs whose names are equal up to the first "-", such as resnet20-w8, resnet20 and resnet20-w24.

tools/train.py trains each config in WORK_DIR/CONFIG/seed-SEED, one after the other. When the command is run
again, complete runs are not repeated and interrupted runs are resumed.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import subprocess
import sys
from pathlib import Path

from mmengine.config import DictAction

from mmrecur.analysis.compare import Curve, Summary, print_summaries, read_curve
from mmrecur.analysis.plots import plot_curves, plot_sizes
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.specs import build_model, read_model
from mmrecur.engine.figures import picture_path, save_figure
from mmrecur.errors import ToolError

TRAIN = Path(__file__).with_name('train.py')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='configs; the first is the reference')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/compared'), help='default: %(default)s'
    )
    parser.add_argument('--metric', default='accuracy/top1', help='name in the log (default: %(default)s)')
    parser.add_argument('--plot', type=picture_path, help='file of the plot: png, pdf or svg')
    parser.add_argument('--size-plot', type=picture_path, help='file of the size plot')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='change all configs; {config} and {seed} become the name of the config and the seed, e.g. '
        'load_from=start/{config}-{seed}.pth',
    )  # fmt: skip
    parser.add_argument(
        '--train-args', nargs=argparse.REMAINDER, default=[], help='pass all following options to train.py'
    )
    args = parser.parse_args(argv)
    names = [Path(config).stem for config in args.configs]
    if len(set(names)) < len(names):
        parser.error(f'configs: two have the same name among {", ".join(names)}; allowed: different names')
    return args


def filled(options: list[str], name: str, seed: int) -> list[str]:
    """Return the options of a run."""
    return [option.replace('{seed}', str(seed)).replace('{config}', name) for option in options]


def count_parameters(config: str, options: list[str], seed: int) -> int:
    """Return the number of parameters of a config's model, with the options applied."""
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='*', action=DictAction)
    changes = parser.parse_args(filled(options, Path(config).stem, seed)).options
    return sum(p.numel() for p in build_model(*read_model(config, changes)).parameters())


def train(config: str, seed: int, work_dir: Path, options: list[str], train_args: list[str]) -> None:
    """Train a config with a seed unless the run is complete.

    Raises:
        ToolError: If the training fails.
    """
    done = work_dir / 'done'
    if done.exists():
        return
    name = Path(config).stem
    options = [*filled(options, name, seed), f'randomness.seed={seed}']
    command = [sys.executable, str(TRAIN), config, '--work-dir', str(work_dir), '--resume', 'auto']
    command += [*train_args, '--num-pictures', '0', '--cfg-options', *options]
    print(f'Training {name}, seed {seed}', flush=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / 'output.txt'
    with log.open('a') as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
            lines = log.read_text().splitlines()[-5:]
            raise ToolError('\n'.join([f'the training failed; the end of {log}:', *lines]))
    done.touch()


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    runs: dict[str, list[Curve]] = {}
    seed, options = args.seeds[0], args.cfg_options
    parameters = {Path(config).stem: count_parameters(config, options, seed) for config in args.configs}
    for seed in args.seeds:
        for config in args.configs:
            name = Path(config).stem
            work_dir = args.work_dir / name / f'seed-{seed}'
            train(config, seed, work_dir, args.cfg_options, args.train_args)
            try:
                runs.setdefault(name, []).append(read_curve(work_dir, args.metric))
            except ValueError as error:
                raise ToolError(f'--metric: {error}') from error
    summaries = [Summary.of(name, curves) for name, curves in runs.items()]
    print_summaries(summaries, args.metric, parameters)
    if args.plot:
        save_figure(plot_curves(runs, args.metric), args.plot)
        print(f'Plot: {args.plot}')
    if args.size_plot:
        sizes: dict[str, list[tuple[int, Summary]]] = {}
        for summary in summaries:
            kind = summary.name.partition('-')[0]
            sizes.setdefault(kind, []).append((parameters[summary.name], summary))
        save_figure(plot_sizes(sizes, args.metric), args.size_plot)
        print(f'Plot of the sizes: {args.size_plot}')


if __name__ == '__main__':
    with clean_errors():
        main()
