"""Evaluate a checkpoint of any detector or classifier of mmdet, mmpretrain or mmrecur.

python tools/test.py CONFIG CHECKPOINT [--out FILE.pkl] [--show-dir DIR] [--tta]
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import json
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend
from mmengine.runner import Runner

from mmrecur.apis.checks import check_work_dir, check_writable_folder
from mmrecur.apis.evaluation import check_dump, draw_into, dump_predictions, evaluate, use_tta
from mmrecur.apis.loading import check_weights
from mmrecur.apis.runner import (
    add_common_arguments,
    build_runner,
    clean_errors,
    leave_processes,
    prepare_config,
)
from mmrecur.apis.summary import print_metrics, print_results
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of a config, or mmdet::PATH, mmpretrain::PATH, mmrecur::PATH')
    parser.add_argument('checkpoint', help='file or URL of the weights to evaluate')
    add_common_arguments(parser)
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to a pickle file')
    parser.add_argument('--show-dir', help='folder for the images with the predictions drawn on them')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='use test-time augmentation: tta_model and tta_pipeline of the config, or flipping',
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'argument --out: {args.out!r} given; allowed: a name ending in .pkl')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    cfg = prepare_config(args)
    for part in ('test_cfg', 'test_dataloader', 'test_evaluator'):
        if cfg.get(part) is None:
            raise ToolError(f'config {args.config!r} has no {part}, which a test needs')
    if '://' not in args.checkpoint:
        check_weights(args.checkpoint, load_checkpoint_file(args.checkpoint))
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show_dir and args.tta and cfg.get('default_scope') == 'mmpretrain':
        raise ToolError('--show-dir: mmpretrain cannot draw with --tta; omit one of them')
    if args.out:
        check_dump(cfg)
        check_writable_folder(Path(args.out).parent, 'folder of --out', 'choose another one')
    if args.show_dir:
        check_writable_folder(args.show_dir, '--show-dir', 'choose another one')
        draw_into(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    check_work_dir(cfg.work_dir)
    runner = build_runner(cfg)
    if args.out:
        dump_predictions(runner, args.out)
    metrics = evaluate(runner)
    if is_main_process():
        report(runner, args, metrics)
    leave_processes(runner)


def report(runner: Runner, args: argparse.Namespace, metrics: dict[str, float]) -> None:
    """Print the metrics, write them to a file, and print the paths of the results."""
    path = Path(runner.log_dir) / 'metrics.json'
    values = {name: float(value) for name, value in metrics.items()}
    get_file_backend(path).put_text(json.dumps(values, indent=2) + '\n', path)
    print_metrics(values, f'{args.checkpoint} on the test data')
    print('Results:', flush=True)
    results = {'metrics': str(path), 'log': str(path.parent / f'{runner.timestamp}.log')}
    if args.out:
        results['predictions'] = args.out
    if args.show_dir:
        results['pictures'] = args.show_dir
    print_results(results)


if __name__ == '__main__':
    with clean_errors():
        main()
