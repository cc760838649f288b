"""What runs a training: hooks, optimizer wrappers, file writing."""

from .file_backend import AtomicLocalBackend, use_atomic_writes
from .hooks import (
    AverageLossesHook,
    CurriculumHook,
    LayerSimilarityHook,
    ResumableRandomnessHook,
)
from .optimizers import CPUAmpOptimWrapper

__all__ = [
    'AtomicLocalBackend',
    'AverageLossesHook',
    'CPUAmpOptimWrapper',
    'CurriculumHook',
    'LayerSimilarityHook',
    'ResumableRandomnessHook',
    'use_atomic_writes',
]
