"""Build runners from configs and command lines, for the tools.

All configs of mmdet and mmpretrain are supported. On machines without an accelerator, this module adds
distributed and mixed-precision training, which MMEngine does not support there.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmrecur.apis.checks import check_loops, check_optimizer
from mmrecur.apis.mistakes import (
    clean_errors,
)
from mmrecur.apis.start import prints_into_log, short_start
from mmrecur.checkpoint.io import use_safe_loading
from mmrecur.engine import AverageLossesHook, CPUAmpOptimWrapper, ResumableRandomnessHook
from mmrecur.engine.configs import config_path, load_config
from mmrecur.engine.file_backend import use_atomic_writes
from mmrecur.errors import ToolError

__all__ = [
    'add_common_arguments',
    'build_runner',
    'clean_errors',
    'config_path',
    'leave_processes',
    'load_config',
    'prepare_config',
    'stack_batches',
    'use_amp',
    'use_auto_scale_lr',
]

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all tools that use a runner.

    Args:
        parser (argparse.ArgumentParser): Parser to extend.
    """
    parser.add_argument('--work-dir', help='folder of the results (default: ./work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, e.g. model.backbone.depth=101 or "train_cfg.max_epochs=3"',
    )
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='launcher of a distributed job (default: none, a single process)',
    )
    # Versions of torch.distributed.launch differ in the spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def prepare_config(args: argparse.Namespace) -> Config:
    """Read the config of a command line and apply the options of :func:`add_common_arguments`.

    Args:
        args (argparse.Namespace): Parsed arguments with ``config`` and the common options.

    Returns:
        Config: The config, with ``work_dir`` and ``launcher`` set.

    Raises:
        ToolError: If the config cannot be read.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)
    stack_batches(cfg)
    return cfg


def stack_batches(cfg: Config) -> None:
    """Set the default ``collate_fn`` of mmpretrain configs, whose models need stacked batches.

    Args:
        cfg (Config): Config, changed in place if it belongs to mmpretrain. mmpretrain's tools do the same.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))


def use_amp(cfg: Config) -> None:
    """Turn on automatic mixed precision: float16 on a GPU, bfloat16 on the CPU.

    Args:
        cfg (Config): Changed in place.

    Raises:
        ToolError: If the optimizer wrapper has no mixed-precision counterpart.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ToolError(f'--amp: optim_wrapper.type is {kind!r}; allowed: OptimWrapper, AmpOptimWrapper')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate in proportion to the total batch size.

    Args:
        cfg (Config): Changed in place.

    Raises:
        ToolError: If the config has no ``auto_scale_lr.base_batch_size``.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ToolError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the total batch size for its '
            'learning rate; set it with --cfg-options auto_scale_lr.base_batch_size=16'
        )
    cfg.auto_scale_lr.enable = True


def build_runner(cfg: Config) -> Runner:
    """Build a runner that loads checkpoints safely and resumes exactly after a kill.

    Checkpoints are loaded as data only and written atomically. :class:`ResumableRandomnessHook` and, in
    distributed runs, :class:`AverageLossesHook` are registered. On a machine without an accelerator,
    processes communicate with gloo, and mixed precision uses bfloat16.

    Args:
        cfg (Config): A config with ``work_dir``, which has to be writable (:func:`check_work_dir`), and
            ``launcher``.

    Returns:
        Runner: The runner. Until it starts, the console shows only messages that a user can act on.

    Raises:
        ToolError: If the config is wrong.
    """
    check_loops(cfg)
    use_safe_loading()
    use_atomic_writes()
    if get_device() == 'cpu' and cfg.launcher != 'none':
        _join_cpu_processes(cfg)
    with prints_into_log():
        runner = short_start(_runner_class(cfg)).from_cfg(cfg)
    check_optimizer(cfg)
    if get_device() == 'cpu':
        _use_cpu_amp(runner)
    names = {type(hook) for hook in runner.hooks}
    wanted = [ResumableRandomnessHook] + ([AverageLossesHook] if runner.distributed else [])
    for hook in wanted:
        if hook not in names:
            runner.register_hook(hook())
    return runner


def _runner_class(cfg: Config) -> type[Runner]:
    kind = cfg.get('runner_type', 'Runner')
    found = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ToolError(f'runner_type={kind!r} is not registered; is its module in custom_imports?')
    return found


def _use_cpu_amp(runner: Runner) -> None:
    # The config that the runner has saved keeps AmpOptimWrapper, so that the run can be resumed on a GPU.
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, dict) and wrapper.get('type') == 'AmpOptimWrapper':
        cpu_only = {key: wrapper[key] for key in wrapper if key not in ('loss_scale', 'dtype')}
        runner.optim_wrapper = {**cpu_only, 'type': CPUAmpOptimWrapper}
        runner.logger.info('Mixed precision on the CPU: bfloat16, no loss scaling.')


def _join_cpu_processes(cfg: Config) -> None:
    """Initialise gloo, because MMEngine selects a GPU even for this backend."""
    env = os.environ
    names = {
        'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
        'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
        'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    }[cfg.launcher]
    missing = [name for name in names if name not in env]
    if missing:
        raise ToolError(
            f'--launcher {cfg.launcher}: the environment lacks {", ".join(missing)}; '
            'start the processes with that launcher (see tools/dist_train.sh)'
        )
    env['RANK'], env['WORLD_SIZE'], env['LOCAL_RANK'] = (env[name] for name in names)
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in env:
        command = ['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']]
        env['MASTER_ADDR'] = subprocess.check_output(command, text=True).split()[0]
    env.setdefault('MASTER_ADDR', '127.0.0.1')
    env.setdefault('MASTER_PORT', '29500')
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
    # DistributedDataParallel accepts device_ids for GPUs only; MMEngine sets them by default.
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def leave_processes(runner: Runner) -> None:
    """Leave the process group of a distributed run at its end.

    Args:
        runner (Runner): The runner; it cannot be used afterwards.
    """
    if not is_distributed():
        return
    if is_model_wrapper(runner.model):
        # If a DistributedDataParallel outlives its group, PyTorch aborts some processes at exit ("terminate
        # called without an active exception"), and the job seems to have failed.
        runner.model = runner.model.module
        gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
