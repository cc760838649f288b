"""Hooks of the runner."""

from .average_losses import AverageLossesHook
from .curriculum import CurriculumHook
from .layer_similarity import LayerSimilarityHook
from .resumable_randomness import ResumableRandomnessHook

__all__ = [
    'AverageLossesHook',
    'CurriculumHook',
    'LayerSimilarityHook',
    'ResumableRandomnessHook',
]
