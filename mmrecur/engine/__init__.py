"""What runs a training: hooks, optimizer wrappers, file writing."""

from .file_backend import AtomicLocalBackend, use_atomic_writes
from .hooks import AverageLossesHook, GateRateHook, ResumableRandomnessHook
from .optimizers import CPUAmpOptimWrapper

__all__ = [
    'AtomicLocalBackend',
    'AverageLossesHook',
    'GateRateHook',
    'CPUAmpOptimWrapper',
    'ResumableRandomnessHook',
    'use_atomic_writes',
]
