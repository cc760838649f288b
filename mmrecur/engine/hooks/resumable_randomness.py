"""Make the randomness of a resumed run equal to that of an uninterrupted run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, get_worker_info

from mmrecur.registry import HOOKS

# First words of the seeds, so that the step and the data of one position draw different numbers.
_STEP, _DATA = range(2)


def _seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators from integers.

    In data loading workers, the generators of devices are left alone: they are not used there, and seeding
    them takes long.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    seed = int(words[2]) << 31 ^ int(words[3])
    if get_worker_info() is None:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class _SeededBatches:
    """Seed the generators of a data loading worker before each of its batches.

    A loader distributes its batches to its workers in turn. Of n workers, worker w loads the batches w, w + n
    and so on. An object of this class replaces two functions of the loader and calls them:
    ``worker_init_fn``, which runs before the first batch of a worker, and ``collate_fn``, which runs at the
    end of each batch.

    Args:
        loader (DataLoader): Loader whose functions are replaced.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._init = loader.worker_init_fn
        self._collate = loader.collate_fn
        #: First words of the seeds, and the position of the first batch that a new iterator loads.
        self.key: tuple[int, ...] = ()
        self.first = 0
        self._loaded = 0

    def attach(self, loader: DataLoader) -> None:
        """Replace the functions of the loader."""
        loader.worker_init_fn, loader.collate_fn = self.init_worker, self

    def detach(self, loader: DataLoader) -> None:
        """Restore the functions of the loader."""
        loader.worker_init_fn, loader.collate_fn = self._init, self._collate

    def seed(self, position: int) -> None:
        """Seed the generators of this process for the batch at a position."""
        _seed_generators(_DATA, *self.key, position)

    def init_worker(self, worker_id: int) -> None:
        """Seed a new worker for its first batch."""
        if self._init is not None:
            self._init(worker_id)
        self._loaded = 0
        self.seed(self.first + worker_id)

    def __call__(self, samples: list[Any]) -> Any:
        """Collate a batch, then seed for the next one."""
        batch = self._collate(samples)
        worker = get_worker_info()
        if worker is not None:  # without workers, the hook seeds the process
            self._loaded += 1
            self.seed(self.first + self._loaded * worker.num_workers + worker.id)
        return batch


class _CountedBatches:
    """Iterator over the batches of an iteration-based loop that counts them.

    The count gives the workers of a new iterator of the loader the position of their first batch.

    Args:
        batches (Iterator): Iterator of MMEngine's loop.
        loader (DataLoader): The loader that it iterates over.
        seeds (_SeededBatches): Seeds of the loader's workers.
    """

    def __init__(self, batches: Any, loader: DataLoader, seeds: _SeededBatches) -> None:
        self._batches = batches
        self._loader = loader
        self._seeds = seeds

    def __iter__(self) -> _CountedBatches:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._seeds.first += 1
        # When the sampler is exhausted, the next pass starts new workers, persistent or not.
        self._loader._iterator = None
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def skip_iter(self, num_iters: int) -> None:
        """Skip a number of batches."""
        if self._loader.num_workers == 0 or self._skips_unloaded():
            self._batches.skip_iter(num_iters)
            self._seeds.first = num_iters
        else:
            for _ in range(num_iters):
                next(self)
        self._seeds.seed(num_iters)

    def _skips_unloaded(self) -> bool:
        resolve = getattr(self._batches, '_resolve_sampler', lambda: None)
        return resolve() is not None and bool(self._batches._resolve_batch_size())


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Seed all random generators from the seed, the position in the training and the rank.

    MMEngine seeds the generators once, when a run starts. A resumed run therefore starts with other random
    numbers, so its augmentations, dropout and sampled proposals differ from those of an uninterrupted run.
    With this hook they are equal. On the CPU, the weights are then equal bit for bit. If the config has no
    seed, MMEngine draws one and stores it in the checkpoint.

    - Before each iteration, the generators of the process are seeded.
    - Before each batch, the generators of the worker that loads it, or of the process if there are no
      workers, are seeded from the position of the batch. The position is the number of the iteration in
      iteration-based loops, and the epoch and the index of the batch in epoch-based loops. The number of
      workers may therefore change, and so may ``persistent_workers``.

    The results are equal under these conditions:

    - The number of processes and the batch size stay the same.
    - The data set is indexed (no ``IterableDataset``), and its samples depend only on the index and the
      generators. mmdet's ``CachedMosaic`` and ``CachedMixUp`` violate this, because they reuse earlier
      samples.
    - Epoch-based loops resume from the end of an epoch. From a checkpoint made within an epoch, MMEngine
      repeats the whole epoch.
    - Iteration-based loops skip the data that was already used. MMEngine 0.10.12 and newer do so unless
      ``fast_forward_on_resume=True``. With an ``InfiniteSampler`` the data is skipped at once. With other
      samplers it is loaded and discarded.
    """

    # Runs after the hooks that change the data loader or draw random numbers.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._seeds: _SeededBatches | None = None

    def before_train(self, runner: Runner) -> None:
        """Replace the functions of the data loader that seed.

        Args:
            runner (Runner): The runner of the training.
        """
        loader = runner.train_dataloader
        if isinstance(loader, DataLoader):
            self._seeds = _SeededBatches(loader)
            self._seeds.attach(loader)

    def after_train(self, runner: Runner) -> None:
        """Restore the functions of the data loader.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._seeds is not None:
            self._seeds.detach(runner.train_dataloader)
            self._seeds = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed for the first batch of an epoch, or of an iteration-based loop.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._seeds is None:
            return
        loop, loader = runner._train_loop, runner.train_dataloader
        # Without its iterator, a loader with persistent workers ends them and starts new ones.
        loader._iterator = None
        if loader.generator is None:
            # A new iterator draws from the generator of the process unless the loader has its own generator.
            # A resumed run makes one more iterator and would draw once more.
            loader.generator = torch.Generator().manual_seed(runner.seed)
        if not self._by_iteration(runner):
            self._seeds.key = (runner.seed, runner.rank, 1 + runner.epoch)
            self._seeds.seed(0)
            return
        self._seeds.key, self._seeds.first = (runner.seed, runner.rank, 0), 0
        if not isinstance(loop.dataloader_iterator, _CountedBatches):
            loop.dataloader_iterator = _CountedBatches(loop.dataloader_iterator, loader, self._seeds)
        self._seeds.seed(runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the process for the random numbers of the model.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
        """
        _seed_generators(_STEP, runner.seed, runner.rank, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Seed the process for the next batch, which it loads if there are no workers.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Index of the iteration in its epoch.
            data_batch (Any): Unused. Defaults to None.
            outputs (Any): Unused. Defaults to None.
        """
        if self._seeds is not None:
            by_iteration = self._by_iteration(runner)
            self._seeds.seed(runner.iter + 1 if by_iteration else batch_idx + 1)

    def after_val(self, runner: Runner) -> None:
        """Seed the process again, because a resumed run did not validate before its next batch.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._seeds is not None and self._by_iteration(runner):
            self._seeds.seed(runner.iter)

    @staticmethod
    def _by_iteration(runner: Runner) -> bool:
        return hasattr(runner._train_loop, 'dataloader_iterator')
