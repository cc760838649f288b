"""Randomness that does not depend on whether a run was interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmrecur.registry import HOOKS

# First words of the seeds: the same step of two kinds of streams must not draw the same numbers.
_EPOCH, _ITERATION, _WORKER = range(3)


def _seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (of every device) from integers."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 31 ^ int(words[3]))


def _init_worker(original: Callable | None, key: tuple[int, ...], worker_id: int) -> None:
    if original is not None:
        original(worker_id)
    _seed_generators(_WORKER, *key, worker_id)


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Make what an epoch draws at random a function of the seed, the epoch and the rank.

    MMEngine seeds the generators once, when a run starts. A resumed run starts them anew, so its
    augmentations, dropout and sampled proposals differ from those of a run that was never
    interrupted. With this hook they are the same, and on the CPU so are the weights, bit for bit.
    Without a seed in the config MMEngine draws one and stores it in the checkpoint.

    - Epoch-based loops: the generators of the process and of its data loading workers are seeded
      when an epoch begins. Workers with ``persistent_workers`` are restarted for that: they cannot
      be reached otherwise. A checkpoint made within an epoch resumes, as always in MMEngine, from
      the beginning of that epoch, which makes it another run.
    - Iteration-based loops: the generators of the process are seeded before each iteration, its
      data loading included if ``num_workers=0``. Workers are seeded once, when training begins or
      resumes, so what they draw depends on where the run was interrupted. The data order comes from
      MMEngine, which must skip what was seen without loading it (from version 0.10.12).

    The number of workers and of processes must stay the same.
    """

    # After the hooks that change the data loader or draw themselves.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._original_init: Callable | None = None

    def before_train(self, runner: Runner) -> None:
        """Keep the config's own initialisation of workers, which still runs first.

        Args:
            runner (Runner): The runner of the training.
        """
        self._original_init = getattr(runner.train_dataloader, 'worker_init_fn', None)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the process and the workers for the epoch, or for the first iteration.

        Args:
            runner (Runner): The runner of the training.
        """
        loader = runner.train_dataloader
        step = runner.iter if self._by_iteration(runner) else runner.epoch
        if isinstance(loader, DataLoader) and loader.num_workers > 0:
            key = (runner.seed, step, runner.rank)
            loader.worker_init_fn = partial(_init_worker, self._original_init, key)
            # Dropping the iterator of persistent workers ends them; the next one starts new ones.
            loader._iterator = None
        if not self._by_iteration(runner):
            _seed_generators(_EPOCH, runner.seed, step, runner.rank)
            return
        if isinstance(loader, DataLoader) and loader.generator is None:
            # A new iterator draws from the generator of the process, unless it has its own, and
            # resuming makes one more.
            loader.generator = torch.Generator().manual_seed(runner.seed)
        self._seed_iteration(runner, step)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Seed the process for the next iteration, in iteration-based loops.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
            outputs (Any): Unused. Defaults to None.
        """
        if self._by_iteration(runner):
            self._seed_iteration(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        """Seed the process anew: a resumed run did not validate before its first iteration.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._by_iteration(runner):
            self._seed_iteration(runner, runner.iter)

    @staticmethod
    def _by_iteration(runner: Runner) -> bool:
        return hasattr(runner._train_loop, 'dataloader_iterator')

    @staticmethod
    def _seed_iteration(runner: Runner, iteration: int) -> None:
        _seed_generators(_ITERATION, runner.seed, iteration, runner.rank)
