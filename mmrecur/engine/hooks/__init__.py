"""Hooks of the runner."""

from .auxiliary_loss import AuxiliaryLossHook
from .average_losses import AverageLossesHook
from .curriculum import CurriculumHook
from .gate_rate import GateRateHook
from .gradient_flow import GradientFlowHook
from .layer_similarity import LayerSimilarityHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = [
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'CurriculumHook',
    'GateRateHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'ResumableRandomnessHook',
]
