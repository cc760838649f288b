"""Data that become harder phase by phase."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmrecur.checks import check_int
from mmrecur.registry import HOOKS


@HOOKS.register_module()
class CurriculumHook(Hook):
    """Move the data sets of a training, and of its validation, from phase to phase.

    The phase depends on the epoch only, so a resumed run goes on where it was. The data sets need
    ``phase``, ``num_phases`` and ``set_phase(phase)``, and their loaders ``num_workers=0`` or no persistent
    workers, whose copies of the data could not be reached.

    Args:
        epochs_per_phase (int): Epochs of each phase; what is left over belongs to the last phase.

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
        """Set that of the validation data, which are as hard as the epoch that was just trained.

        Args:
            runner (Runner): The runner of the training.
        """
        if runner.epoch > 0:  # else a validation without training: the data's own phase
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
            dataset.full_init()  # here, or every worker does it for itself in every epoch
