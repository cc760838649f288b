"""Statistics of batch norms that belong to the final weights of a training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import wraps
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mmrecur.checks import check_int
from mmrecur.engine.randomness import own_randomness
from mmrecur.models.layers.common.modes import evaluation_mode
from mmrecur.models.norms import batch_norms, reestimate_norms
from mmrecur.registry import HOOKS


@HOOKS.register_module()
class ReestimateNormsHook(Hook):
    """Re-estimate the running statistics of batch norms on images of the training, without labels.

    Running statistics lag behind the weights, and an average of weights (``EMAHook``) has none of its own:
    those that MMEngine stores with it belong to the last weights. This hook replaces them, for the model and
    for its average alike, by the statistics that :func:`mmrecur.apis.reestimate_norms` computes on augmented
    training images. It runs at the end of the last epoch (or iteration), before the last checkpoint is
    written and the last validation starts. Validations of an average then use the statistics of the average.

    Norms in evaluation mode during the training (``norm_eval=True``, frozen stages) are constants of the
    network and stay as they are, and so do the norms of heads. The hook draws no random numbers from the
    generators of the training and does not touch the order of its data; a resumed training ends with the same
    weights as one that was never interrupted. Every process takes its share of the images.

    Training that ends before its schedule does (early stopping) needs an ``interval``.

    Args:
        num_batches (int): Largest number of batches in each process, of the size of the training's batches.
            The images are drawn from the data set without repetition. Defaults to 200.
        interval (int, optional): Re-estimate also after every so many epochs (or iterations, in
            iteration-based loops), usually the interval of validations. Defaults to None, at the end only.

    Raises:
        ValueError: If an argument is wrong. When the training starts, also if backbone and neck have no norms
            in training mode, or if the data set has no indices.

    Example:
        >>> custom_hooks = [  # in a config
        ...     dict(type='EMAHook', momentum=0.001),
        ...     dict(type='mmrecur.ReestimateNormsHook'),
        ... ]
    """

    # after EMAHook has averaged, before CheckpointHook
    priority = 'LOW'

    def __init__(self, num_batches: int = 200, interval: int | None = None) -> None:
        check_int('num_batches', num_batches, 1)
        if interval is not None:
            check_int('interval', interval, 1)
        self.num_batches = num_batches
        self.interval = interval

    def before_run(self, runner: Runner) -> None:
        """Let averages of weights bring their statistics along when they are evaluated.

        Args:
            runner (Runner): The runner.
        """
        for hook in _averages(runner):
            # the swap before and after an evaluation; subclasses differ in when they call it
            if not hasattr(hook._swap_ema_parameters, 'swaps_statistics'):
                hook._swap_ema_parameters = _swapping_statistics(hook)

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to re-estimate.

        Args:
            runner (Runner): The runner of the training.
        """
        model = _unwrapped(runner.model)
        if not _trained_norms(model):
            raise ValueError(
                f'ReestimateNormsHook: {type(model).__name__} has no batch norms that train; allowed: batch '
                'norms with running statistics, norm_eval=False, stages that are not frozen'
            )
        if isinstance(runner.train_dataloader.dataset, IterableDataset):
            raise ValueError('ReestimateNormsHook: the data set is iterable, allowed: one with indices')

    def after_train_epoch(self, runner: Runner) -> None:
        """Re-estimate at the end of an epoch.

        Args:
            runner (Runner): The runner of the training.
        """
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._run_if_due(runner, runner.epoch + 1, runner.max_epochs)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Re-estimate in an iteration-based loop.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Unused.
            data_batch (Any): Unused. Defaults to None.
            outputs (dict, optional): Unused. Defaults to None.
        """
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._run_if_due(runner, runner.iter + 1, runner.max_iters)

    def _run_if_due(self, runner: Runner, done: int, total: int) -> None:
        if done != total and (self.interval is None or done % self.interval):
            return
        model = _unwrapped(runner.model)
        names = _trained_norms(model)
        for each in (model, *(hook.ema_model.module for hook in _averages(runner))):
            count = self._reestimate(runner, each, names)
        runner.logger.info(f'Re-estimated the statistics of {count} batch norms.')

    def _reestimate(self, runner: Runner, model: nn.Module, names: Collection[str]) -> int:
        # the same images with the same augmentations for all models
        with own_randomness(runner.seed):
            loader = self._loader(runner.train_dataloader, runner)
            return reestimate_norms(model, _images(loader, _unwrapped(runner.model)), names)

    def _loader(self, training: DataLoader, runner: Runner) -> DataLoader:
        """Return a loader of its own, because the training's sampler and workers have a state."""
        size = training.batch_size or training.batch_sampler.batch_size
        processes = get_world_size()
        generator = torch.Generator().manual_seed(runner.seed)
        indices = torch.randperm(len(training.dataset), generator=generator)
        chosen = indices[: self.num_batches * size * processes]
        return DataLoader(
            training.dataset,
            size,
            sampler=chosen[runner.rank :: processes].tolist(),
            num_workers=training.num_workers,
            collate_fn=training.collate_fn,
            worker_init_fn=training.worker_init_fn,
            generator=generator,
        )


def _images(loader: DataLoader, model: nn.Module) -> Iterator[Tensor | list[Tensor]]:
    """Yield the preprocessed inputs of batches, without augmentations of whole batches."""
    for batch in loader:
        yield model.data_preprocessor(batch, training=False)['inputs']


def _trained_norms(model: nn.Module) -> list[str]:
    """Return the names of the batch norms that use the statistics of batches in training."""
    with evaluation_mode(model):  # which restores the modes
        model.train()
        return [name for name, norm in batch_norms(model).items() if norm.training]


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model):
        model = model.module
    return model


def _averages(runner: Runner) -> list[EMAHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


def _swapping_statistics(hook: EMAHook) -> Callable[[], None]:
    """Return a function that swaps a model with its average, the statistics of norms included."""
    swap = hook._swap_ema_parameters

    @wraps(swap)
    def swap_all() -> None:
        swap()
        if hook.ema_model.update_buffers:  # the swap above includes them
            return
        pairs = zip(batch_norms(hook.src_model).values(), batch_norms(hook.ema_model.module).values())
        for ours, theirs in pairs:
            for name in ('running_mean', 'running_var'):
                a, b = getattr(ours, name), getattr(theirs, name)
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)

    swap_all.swaps_statistics = True  # type: ignore[attr-defined]
    return swap_all
