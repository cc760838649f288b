"""Objectives of modules themselves, beside a head's losses; ``AuxiliaryLossHook`` collects them."""

from mmrecur.models.losses.collection import CollectionWatch
from mmrecur.models.losses.gate_rate import GateRateLoss
from mmrecur.models.losses.objective import OwnObjective
from mmrecur.models.losses.orthogonality import BasisGroup, OrthogonalityLoss
from mmrecur.models.losses.recurrence import RecurrenceLoss

__all__ = [
    'BasisGroup',
    'CollectionWatch',
    'GateRateLoss',
    'OrthogonalityLoss',
    'OwnObjective',
    'RecurrenceLoss',
]
