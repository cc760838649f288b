"""Train on data that become harder from phase to phase."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmrecur.checks import check_int
from mmrecur.registry import HOOKS


@HOOKS.register_module()
class CurriculumHook(Hook):
    """Advance the phase of the training and validation data sets.

    The phase depends on the epoch only, so a resumed run continues in the right phase. The data sets need
    ``phase``, ``num_phases`` and ``set_phase(phase)``. Their loaders need ``num_workers=0`` or
    ``persistent_workers=False``, because persistent workers keep copies of the old phase.

    Args:
        epochs_per_phase (int): Number of epochs in each phase. The last phase also gets all remaining epochs.

    Raises:
        ValueError: If ``epochs_per_phase`` is less than 1.
    """

    def __init__(self, epochs_per_phase: int) -> None:
        check_int('epochs_per_phase', epochs_per_phase, 1)
        self.epochs_per_phase = epochs_per_phase

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the phase of the training data.

        Args:
            runner (Runner): The runner of the training.
        """
        self._set(runner, runner.train_dataloader, runner.epoch)

    def before_val_epoch(self, runner: Runner) -> None:
        """Set the phase of the validation data to that of the epoch that was just trained.

        Args:
            runner (Runner): The runner of the training.
        """
        if runner.epoch > 0:  # a validation before any training uses the phase in the data set's config
            self._set(runner, runner.val_dataloader, runner.epoch - 1)

    def _set(self, runner: Runner, loader: DataLoader, epoch: int) -> None:
        if loader.num_workers and loader.persistent_workers:
            raise ValueError('persistent_workers=True, allowed with CurriculumHook: False, or num_workers=0')
        dataset = loader.dataset
        if not hasattr(dataset, 'set_phase'):
            raise TypeError(
                f'dataset of type {type(dataset).__name__} with CurriculumHook, allowed: one with phases, '
                'such as mmrecur.ShortestPaths, not wrapped in another'
            )
        phase = min(epoch // self.epochs_per_phase, dataset.num_phases - 1)
        if phase != dataset.phase:
            runner.logger.info(f'Curriculum: phase {phase + 1} of {dataset.num_phases}')
        dataset.set_phase(phase)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()  # otherwise every worker would draw the examples in every epoch
