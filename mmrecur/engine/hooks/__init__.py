"""Hooks of the runner."""

from .auxiliary_loss import AuxiliaryLossHook
from .average_losses import AverageLossesHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = [
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'ResumableRandomnessHook',
]
