"""Train any model of mmdet, mmpretrain or mmrecur from a config.

python tools/train.py CONFIG [--resume] [--amp] [--cfg-options KEY=VALUE ...]
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import sys
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmrecur.apis.checks import check_work_dir
from mmrecur.apis.pictures import draw_predictions
from mmrecur.apis.runner import (
    add_common_arguments,
    build_runner,
    clean_errors,
    leave_processes,
    prepare_config,
    use_amp,
    use_auto_scale_lr,
)
from mmrecur.apis.summary import final_metrics, print_metrics, print_results, training_results
from mmrecur.apis.training import set_starting_point, train
from mmrecur.engine import lock_work_dir
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of a config, or mmdet::PATH, mmpretrain::PATH, mmrecur::PATH')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; "auto" or no value: from the last one in the work directory, or '
        'from the beginning if there is none',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on the CPU',
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='use the channels-last memory format, which is faster on CPUs, and on GPUs with --amp',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='multiply the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--num-pictures',
        type=int,
        default=8,
        metavar='N',
        help='draw the predictions of a trained detector on the first N validation images; 0 for none '
        '(default: 8)',
    )
    parser.add_argument(
        '--show-dir', help='folder of these pictures; default: predictions in the work directory'
    )
    args = parser.parse_args(argv)
    if args.num_pictures < 0:
        parser.error(f'argument --num-pictures: {args.num_pictures} given; allowed: 0 or more')
    return args


def draw(runner: Runner, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Draw predictions; log errors instead of raising them, because the training is complete."""
    directory = Path(args.show_dir or Path(runner.work_dir) / 'predictions')
    try:
        written = draw_predictions(runner, directory, args.num_pictures)
    except Exception as error:
        runner.logger.warning(f'No predictions drawn: {type(error).__name__}: {error}')
        return []
    return [('predictions', str(directory))] if written else []


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    cfg = prepare_config(args)
    for part in ('train_cfg', 'train_dataloader', 'optim_wrapper'):
        if cfg.get(part) is None:
            raise ToolError(f'config {args.config!r} has no {part}, which a training needs')
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    check_work_dir(cfg.work_dir)
    lock_work_dir(cfg.work_dir, cfg.launcher)
    set_starting_point(cfg, args.resume)
    runner = build_runner(cfg)
    if args.channels_last:
        runner.model.to(memory_format=torch.channels_last)
    train(runner, sys.argv[1:] if argv is None else argv)
    pictures = draw(runner, args) if args.num_pictures else []
    if is_main_process():
        metrics = final_metrics(runner)
        if metrics:
            print_metrics(metrics, 'Last validation')
        print('Results:', flush=True)
        print_results(training_results(runner), pictures)
    leave_processes(runner)


if __name__ == '__main__':
    with clean_errors():
        main()
