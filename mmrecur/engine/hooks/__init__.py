"""Hooks of the runner."""

from .auxiliary_loss import AuxiliaryLossHook
from .average_losses import AverageLossesHook
from .gradient_flow import GradientFlowHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = [
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'GradientFlowHook',
    'ResumableRandomnessHook',
]
