"""Randomness that does not depend on whether a run was interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, get_worker_info

from mmrecur.registry import HOOKS

# First words of the seeds: the same step of two kinds of streams must not draw the same numbers.
_STEP, _DATA = range(2)


def _seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators from integers.

    Workers that load data have no use for the generators of devices, which take long to reach.
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

    A loader gives its batches to its workers in turn: worker w of n loads the batches w, n + w, 2 n + w, ...
    This object serves as the loader's ``worker_init_fn`` and as its ``collate_fn``, which ends a batch.

    Args:
        loader (DataLoader): Where it takes the place of the two functions; they are still called.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._init = loader.worker_init_fn
        self._collate = loader.collate_fn
        #: First words of the seeds, and the position of the first batch of an iterator made now.
        self.key: tuple[int, ...] = ()
        self.first = 0
        self._loaded = 0

    def attach(self, loader: DataLoader) -> None:
        """Take the place of the loader's functions."""
        loader.worker_init_fn, loader.collate_fn = self.init_worker, self

    def detach(self, loader: DataLoader) -> None:
        """Put the loader's functions back."""
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
        if worker is not None:  # else the hook seeds
            self._loaded += 1
            self.seed(self.first + self._loaded * worker.num_workers + worker.id)
        return batch


class _CountedBatches:
    """The batches of an iteration-based loop, which count themselves.

    Tells the workers of each new iterator of the loader where in the training their first batch is.

    Args:
        batches (Iterator): MMEngine's iterator.
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
        # A sampler that has come to its end begins anew with new workers, persistent or not.
        self._loader._iterator = None
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def skip_iter(self, num_iters: int) -> None:
        """Go to the batch that comes after so many."""
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
    """Make what a training draws at random a function of the seed, the position and the rank.

    MMEngine seeds the generators once, when a run starts. A resumed run starts them anew, so its
    augmentations, dropout and sampled proposals differ from those of a run that was never
    interrupted. With this hook they are the same, and on the CPU so are the weights, bit for bit.
    Without a seed in the config MMEngine draws one and stores it in the checkpoint.

    - The generators of the process are seeded before each iteration.
    - The generators of whatever loads the data, workers or the process itself, are seeded before each
      batch, from its position: the number of the iteration in iteration-based loops, epoch and index in
      epoch-based ones. So the number of workers may change, persistent or not.

    The promise holds under these conditions:

    - The number of processes and the batch size stay the same.
    - The data set is one of indices (no ``IterableDataset``) whose samples depend on index and generators
      alone. mmdet's ``CachedMosaic`` and ``CachedMixUp`` keep earlier samples, so they break it.
    - Epoch-based loops resume from the end of an epoch. From a checkpoint made within an epoch MMEngine
      repeats that epoch from its beginning.
    - Iteration-based loops skip the data that was seen. MMEngine does so from version 0.10.12 on, unless
      ``fast_forward_on_resume=True``: at once with an ``InfiniteSampler``; what other samplers give is loaded
      and thrown away.
    """

    # After the hooks that change the data loader or draw themselves.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._seeds: _SeededBatches | None = None

    def before_train(self, runner: Runner) -> None:
        """Take over the seeding of the data loading.

        Args:
            runner (Runner): The runner of the training.
        """
        loader = runner.train_dataloader
        if isinstance(loader, DataLoader):
            self._seeds = _SeededBatches(loader)
            self._seeds.attach(loader)

    def after_train(self, runner: Runner) -> None:
        """Give the loader its functions back.

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
        # Dropping the iterator of persistent workers ends them; the next one starts new ones.
        loader._iterator = None
        if loader.generator is None:
            # A new iterator draws from the generator of the process, unless it has its own, and
            # resuming makes one more.
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
        """Seed the process for what the model draws.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
        """
        _seed_generators(_STEP, runner.seed, runner.rank, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Seed the process for the next batch, which it loads itself if there are no workers.

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
        """Seed the process anew: a resumed run did not validate before its next batch.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._seeds is not None and self._by_iteration(runner):
            self._seeds.seed(runner.iter)

    @staticmethod
    def _by_iteration(runner: Runner) -> bool:
        return hasattr(runner._train_loop, 'dataloader_iterator')
