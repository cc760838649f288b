"""What runs a training: hooks, optimizer wrappers, file writing."""

from .file_backend import AtomicLocalBackend, FileWriteError, explain_no_room, use_atomic_writes
from .hooks import (
    AuxiliaryLossHook,
    AverageLossesHook,
    CurriculumHook,
    GateRateHook,
    GradientFlowHook,
    LayerSimilarityHook,
    ResumableRandomnessHook,
)
from .optimizers import CPUAmpOptimWrapper
from .work_dir import WorkDirInUseError, lock_work_dir

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
