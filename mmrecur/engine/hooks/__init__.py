"""Hooks of the runner."""

from mmrecur.engine.hooks.auxiliary_loss import AuxiliaryLossHook
from mmrecur.engine.hooks.average_losses import AverageLossesHook
from mmrecur.engine.hooks.curriculum import CurriculumHook
from mmrecur.engine.hooks.feature_matching import FeatureMatchingHook
from mmrecur.engine.hooks.gate_rate import GateRateHook
from mmrecur.engine.hooks.gradient_flow import GradientFlowHook
from mmrecur.engine.hooks.layer_similarity import LayerSimilarityHook
from mmrecur.engine.hooks.reestimate_norms import ReestimateNormsHook
from mmrecur.engine.hooks.resumable_randomness import ResumableRandomnessHook

__all__ = [
    'AuxiliaryLossHook',
    'AverageLossesHook',
    'CurriculumHook',
    'FeatureMatchingHook',
    'GateRateHook',
    'GradientFlowHook',
    'LayerSimilarityHook',
    'ReestimateNormsHook',
    'ResumableRandomnessHook',
]
