"""Show how often the loops of a DR-ResNet or DR-MobileNetV2 run for each image of a test data set.

CONFIG is the config of a classifier or detector with such a backbone, CHECKPOINT its weights. Results:

    loop_times.json          iterations for each image and loop, their mean and standard deviation, the rate
                             of each gate, average multiply-adds, accuracy by iterations
    loop_times.png           distribution of the iterations, for all loops together and for each loop
                             (Figure 8 of the DR-ResNet paper)
    easy_and_hard.png        the images with the fewest and with the most iterations; ties are spread evenly
                             over the data set. With --per-class the easiest and the hardest image of each
                             class, one above the other (Figure 9)
    passed_and_skipped.png   mean and variance of each channel for the maps that a gate let pass and for
                             those that it did not, in a shallow and in a deep loop (Figure 7)

    python tools/analysis_tools/loop_times.py configs/dr_resnet/dr-resnet32_1xb256_cifar10.py CHECKPOINT
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.fileio import get
from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.gate_maps import shallow_and_deep
from mmrecur.analysis.loop_figures import plot_easy_and_hard, plot_gate_maps, plot_loop_times
from mmrecur.analysis.loop_run import LoopRun, run_loops
from mmrecur.apis.dataset_images import build_test_loader
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.specs import registry_scope
from mmrecur.apis.summary import print_results
from mmrecur.apis.tying import load_model
from mmrecur.engine.figures import save_figure
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config, or mmrecur::PATH')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument(
        '--out-dir', default='loop_times', help='folder for the results (default: loop_times)'
    )
    parser.add_argument('--num-images', type=int, help='use only the first images of the data set')
    parser.add_argument(
        '--num-pictures', type=int, default=10, help='number of easy and of hard images to draw (default: 10)'
    )
    parser.add_argument(
        '--per-class',
        action='store_true',
        help='draw the easiest and the hardest image of each class, for the --num-pictures classes in which '
        'they differ most; for classifiers only',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    args = parser.parse_args(argv)
    for option in ('num_images', 'num_pictures'):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f'argument --{option.replace("_", "-")}: {value} given; allowed: at least 1')
    return args


def run(cfg: Config, args: argparse.Namespace) -> tuple[LoopRun, Any]:
    """Run the data set through the model; return the results and the data set."""
    model = load_model(cfg, args.checkpoint).to(get_device())
    loader, dataset = build_test_loader(cfg, args.num_images)
    try:
        with registry_scope(cfg.get('default_scope')):
            return run_loops(model, loader), dataset
    except ValueError as error:
        raise ToolError(f'{args.config}: {error}') from error


def pixels_of(info: dict[str, Any]) -> np.ndarray:
    """Return an image of a data set as stored, RGB, shape (H, W, 3)."""
    if info.get('img') is not None:  # CIFAR stores many images in a file
        return np.asarray(info['img'], np.uint8)
    return mmcv.imfrombytes(get(info['img_path']), channel_order='rgb')


def easy_and_hard(result: LoopRun, number: int, per_class: bool) -> tuple[list[int], list[int]]:
    """Return the indices of the easy and of the hard images to draw."""
    if not per_class:
        return result.times.easiest_and_hardest(number)
    if None in result.labels:
        raise ToolError('--per-class needs an image classifier, and exactly one label for each image')
    easy, hard = result.times.easiest_and_hardest_of_classes(result.labels, number)
    if not easy:
        raise ToolError('--per-class needs at least two images of a class')
    return easy, hard


def draw(
    result: LoopRun, dataset: Any, number: int, directory: Path, per_class: bool = False
) -> dict[str, str]:
    """Draw the figures; return their paths by content."""
    times, totals = result.times, result.times.totals
    sheets = [
        [(pixels_of(dataset.get_data_info(index)), int(totals[index])) for index in indices]
        for indices in easy_and_hard(result, number, per_class)
    ]
    figures = {
        'loop_times': ('distribution', plot_loop_times(times)),
        'easy_and_hard': ('images', plot_easy_and_hard(*sheets, times.limit)),
    }
    maps = shallow_and_deep(result.maps)
    if maps:
        figures['passed_and_skipped'] = ('maps', plot_gate_maps(maps))
    else:
        print('Every gate decides the same for all images: there are no maps to compare', file=sys.stderr)
    written = {}
    for name, (what, figure) in figures.items():
        written[what] = str(directory / f'{name}.png')
        save_figure(figure, written[what])
    return written


def results_by_image(result: LoopRun, dataset: Any) -> list[dict[str, Any]]:
    """Return the results for each image, in the order of the data set."""
    rows = []
    for index, total in enumerate(result.times.totals.tolist()):
        row = dict(iterations=total, loops={k: int(own[index]) for k, own in result.times.counts.items()})
        path = dataset.get_data_info(index).get('img_path')
        if path is not None:
            row = dict(image=str(path), **row)
        if result.correct[index] is not None:
            row['correct'] = result.correct[index]
        rows.append(row)
    return rows


def print_summary(summary: dict[str, Any]) -> None:
    """Print iterations and rates of each loop and of all loops, multiply-adds and accuracy."""
    most = max(loop['limit'] for loop in summary['loops'].values())
    title = f'Iterations of {summary["num_images"]:,} images'
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left')
    table.add_column('loop')
    for heading in ('at most', 'mean', 'std', *(f'rate {k + 1}' for k in range(most))):
        table.add_column(heading, justify='right')
    for name, loop in [*summary['loops'].items(), ('all', summary['iterations'])]:
        if name == 'all':
            table.add_section()
        rates = (gate['rate'] for gate in loop.get('gates', ()))
        cells = ('-' if rate is None else f'{rate:.3f}' for rate in rates)
        table.add_row(name, str(loop['limit']), f'{loop["mean"]:.2f}', f'{loop["std"]:.2f}', *cells)
    console = Console(width=max(100, Console().width), markup=False, highlight=False)
    console.print(table)
    work = summary['multiply_adds']
    console.print(
        f'Multiply-adds of the {work["counted"]} at {"x".join(map(str, work["input_size"]))}: on average '
        f'{work["average"] / 1e9:.4g} G, with all iterations {work["maximum"] / 1e9:.4g} G, '
        f'ratio {work["ratio"]:.3f}',
        soft_wrap=True,
    )
    for total, own in summary.get('accuracy', {}).items():
        console.print(f'Accuracy after {total} iterations: {own["accuracy"]:.4f} ({own["images"]:,} images)')


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    directory = Path(args.out_dir)
    # keep the log messages of the libraries out of the result on stdout
    with contextlib.redirect_stdout(sys.stderr):
        result, dataset = run(load_config(args.config, args.cfg_options), args)
        files = draw(result, dataset, args.num_pictures, directory, args.per_class)
    summary = result.summary()
    path = directory / 'loop_times.json'
    document = dict(config=args.config, checkpoint=args.checkpoint, **summary)
    document['images'] = results_by_image(result, dataset)
    path.write_text(json.dumps(document) + '\n')
    print_summary(summary)
    print_results({'counts': str(path), **files})


if __name__ == '__main__':
    with clean_errors():
        main()
