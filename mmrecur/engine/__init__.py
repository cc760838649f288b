"""Hooks, optimizer wrappers and file writing for trainings."""

from mmrecur.engine.file_backend import AtomicLocalBackend, FileWriteError, explain_no_room, use_atomic_writes
from mmrecur.engine.hooks import (
    AuxiliaryLossHook,
    AverageLossesHook,
    CurriculumHook,
    GateRateHook,
    GradientFlowHook,
    LayerSimilarityHook,
    ResumableRandomnessHook,
)
from mmrecur.engine.optimizers import CPUAmpOptimWrapper
from mmrecur.engine.work_dir import WorkDirInUseError, lock_work_dir

__all__ = [
    'AtomicLocalBackend',
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'CPUAmpOptimWrapper',
    'CurriculumHook',
    'FileWriteError',
    'GateRateHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'ResumableRandomnessHook',
    'WorkDirInUseError',
    'explain_no_room',
    'lock_work_dir',
    'use_atomic_writes',
]
