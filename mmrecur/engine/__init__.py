"""What runs a training: hooks, optimizer wrappers, file writing."""

from .file_backend import AtomicLocalBackend, use_atomic_writes
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

__all__ = [
    'AtomicLocalBackend',
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'CPUAmpOptimWrapper',
    'CurriculumHook',
    'GateRateHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'ResumableRandomnessHook',
    'use_atomic_writes',
]
