"""Start, resume and interrupt trainings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from mmrecur.apis.checks import check_data
from mmrecur.apis.loading import check_resumable, check_weights, load_strictly
from mmrecur.apis.widths import explained_widths
from mmrecur.checkpoint.resume import find_checkpoint_to_resume, load_run_checkpoint


def set_starting_point(cfg: Config, resume: str | None) -> None:
    """Set the checkpoint that a training starts from, and check it before anything is built.

    A resumed training gets the seed of the training that it continues.

    Args:
        cfg (Config): Config with ``work_dir``. Its ``resume``, ``load_from`` and ``randomness`` are changed
            in place.
        resume (str, optional): Checkpoint to continue from, or 'auto' for the last one in the work directory,
            if there is one. None leaves the choice to the config.

    Raises:
        CheckpointError: If the checkpoint cannot be read, has no weights, or cannot be resumed.
    """
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
        _take_over_seed(cfg, checkpoint['meta'].get('seed'))
    return None


def _take_over_seed(cfg: Config, seed: int | None) -> None:
    """Set the seed of the training that is continued.

    MMEngine sets it after it has built the sampler, which is too late for the order of the data.
    """
    randomness = dict(cfg.get('randomness') or {})
    given = randomness.get('seed')
    if seed is None or given == seed:
        return
    if given is not None:
        print(f'The resumed run had seed {seed}, which replaces {given}.', flush=True)
    cfg.randomness = dict(randomness, seed=seed)


def train(runner: Runner, argv: Sequence[str]) -> None:
    """Check the data of a runner and train its model.

    Args:
        runner (Runner): The runner.
        argv (Sequence[str]): Arguments of the command line, for the message after an interrupt.

    Raises:
        KeyboardInterrupt: On an interrupt; its argument explains how to continue.
        ToolError: If the data do not fit the model.
    """
    try:
        check_data(runner, 'train', 'val')
        if runner._resume:
            load_strictly(runner)
        with explained_widths(runner):
            runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_continue(runner, argv)) from None


def _how_to_continue(runner: Runner, argv: Sequence[str]) -> str:
    """Return the last checkpoint of an interrupted training and the command that continues it."""
    reached = find_checkpoint_to_resume(runner.work_dir)
    if reached is None:
        return f'{runner.work_dir} has no checkpoint yet: the same command starts again'
    if runner.distributed:
        return f'the same command with --resume auto continues from {reached}'
    command = shlex.join(['python', sys.argv[0], *argv, '--resume', 'auto'])
    return f'to continue from {reached}:\n  {command}'
