"""Hooks of the runner."""

from .average_losses import AverageLossesHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = ['AverageLossesHook', 'ResumableRandomnessHook']
