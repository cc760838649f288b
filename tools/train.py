"""Train any model of mmdet, mmpretrain or mmrecur from a config.

python tools/train.py CONFIG [--resume] [--amp] [--cfg-options KEY=VALUE ...]
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmrecur.apis.checks import check_data, check_work_dir
from mmrecur.apis.loading import check_resumable, check_weights, load_strictly
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
from mmrecur.apis.widths import explained_widths
from mmrecur.checkpoint.resume import find_checkpoint_to_resume, load_run_checkpoint
from mmrecur.engine import lock_work_dir
from mmrecur.errors import ToolError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of a config, or mmdet::PATH, mmpretrain::PATH, mmrecur::PATH')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; "auto", or no value: from the last one in the work '
        'directory, or from scratch if there is none',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on the CPU',
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='lay weights, and so feature maps, out with the channels last: faster on CPUs, and on GPUs '
        'with --amp',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--num-pictures',
        type=int,
        default=8,
        metavar='N',
        help='after training, draw the predictions of a detector on the first N validation images; '
        '0 for none (default: 8)',
    )
    parser.add_argument('--show-dir', help='where to draw them; default: predictions in the work directory')
    args = parser.parse_args(argv)
    if args.num_pictures < 0:
        parser.error(f'argument --num-pictures: {args.num_pictures} given; allowed: 0 or more')
    return args


def set_starting_point(cfg: Config, resume: str | None) -> None:
    """Decides what the run starts from, and reads it to fail before anything is built."""
    if resume == 'auto':
        found = find_checkpoint_to_resume(cfg.work_dir, report=print)
        if found is None:
            print(f'Nothing to resume in {cfg.work_dir}: training from the start.', flush=True)
            cfg.resume = False
        else:
            cfg.resume, cfg.load_from = True, str(found)
    elif resume is not None:
        cfg.resume, cfg.load_from = True, resume
    elif cfg.get('resume') and cfg.get('load_from') is None:
        return set_starting_point(cfg, 'auto')
    source = cfg.get('load_from')
    if source is None or '://' in source:
        return None
    checkpoint = load_run_checkpoint(source)
    check_weights(source, checkpoint)
    if cfg.get('resume'):
        check_resumable(source, checkpoint)
        take_over_seed(cfg, checkpoint['meta'].get('seed'))
    return None


def take_over_seed(cfg: Config, seed: int | None) -> None:
    """Gives the run the seed of the one it continues.

    MMEngine takes the seed over after the sampler has been built, too late for the data order.
    """
    randomness = dict(cfg.get('randomness') or {})
    given = randomness.get('seed')
    if seed is None or given == seed:
        return
    if given is not None:
        print(f'The resumed run had seed {seed}: it replaces {given}.', flush=True)
    cfg.randomness = dict(randomness, seed=seed)


def train(runner: Runner, argv: Sequence[str]) -> None:
    """Trains, once the data are known to be there and to fit the model.

    Raises:
        KeyboardInterrupt: On an interrupt; its argument says how to go on.
    """
    try:
        check_data(runner, 'train', 'val')
        if runner._resume:
            load_strictly(runner)
        with explained_widths(runner):
            runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(runner, argv)) from None


def how_to_go_on(runner: Runner, argv: Sequence[str]) -> str:
    """Says where an interrupted training got to and which command continues it."""
    reached = find_checkpoint_to_resume(runner.work_dir)
    if reached is None:
        return f'no checkpoint is in {runner.work_dir} yet: the same command starts again'
    if runner.distributed:
        return f'the same command with --resume auto goes on from {reached}'
    command = shlex.join(['python', sys.argv[0], *argv, '--resume', 'auto'])
    return f'to go on from {reached}:\n  {command}'


def draw(runner: Runner, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Draws predictions; what goes wrong here must not fail a training that is done."""
    directory = Path(args.show_dir or Path(runner.work_dir) / 'predictions')
    try:
        written = draw_predictions(runner, directory, args.num_pictures)
    except Exception as error:
        runner.logger.warning(f'No pictures of predictions: {type(error).__name__}: {error}')
        return []
    return [('predictions', str(directory))] if written else []


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    cfg = prepare_config(args)
    for part in ('train_cfg', 'train_dataloader', 'optim_wrapper'):
        if cfg.get(part) is None:
            raise ToolError(f'config {args.config!r} has no {part}: it describes no training')
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
