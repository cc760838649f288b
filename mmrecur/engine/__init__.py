"""Hooks, optimizer wrappers and file writing for trainings."""

from mmrecur.engine.file_backend import AtomicLocalBackend, explain_no_room, use_atomic_writes
from mmrecur.engine.hooks import (
    AuxiliaryLossHook,
    AverageLossesHook,
    CurriculumHook,
    FeatureMatchingHook,
    GateRateHook,
    GradientFlowHook,
    LayerSimilarityHook,
    ReestimateNormsHook,
    ResumableRandomnessHook,
)
from mmrecur.engine.optimizers import CPUAmpOptimWrapper
from mmrecur.engine.work_dir import lock_work_dir

__all__ = [
    'AtomicLocalBackend',
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'CPUAmpOptimWrapper',
    'CurriculumHook',
    'FeatureMatchingHook',
    'GateRateHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'ReestimateNormsHook',
    'ResumableRandomnessHook',
    'explain_no_room',
    'lock_work_dir',
    'use_atomic_writes',
]
