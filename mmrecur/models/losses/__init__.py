"""Auxiliary losses: objectives of modules other than heads, collected by ``AuxiliaryLossHook``."""

from mmrecur.models.losses.auxiliary import AuxiliaryObjective
from mmrecur.models.losses.feature_matching import matching_error, matching_errors
from mmrecur.models.losses.gate_rate import GateRateLoss
from mmrecur.models.losses.orthogonality import BasisGroup, OrthogonalityLoss
from mmrecur.models.losses.recurrence import RecurrenceLoss

__all__ = [
    'AuxiliaryObjective',
    'BasisGroup',
    'GateRateLoss',
    'OrthogonalityLoss',
    'RecurrenceLoss',
    'matching_error',
    'matching_errors',
]
