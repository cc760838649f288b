"""Hooks of the runner."""

from .average_losses import AverageLossesHook
from .gate_rate import GateRateHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = ['AverageLossesHook', 'GateRateHook', 'ResumableRandomnessHook']
