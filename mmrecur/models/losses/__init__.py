"""Objectives of modules themselves, beside a head's losses; ``AuxiliaryLossHook`` collects them."""

from .collection import CollectionWatch
from .gate_rate import GateRateLoss
from .objective import OwnObjective
from .orthogonality import BasisGroup, OrthogonalityLoss
from .recurrence import RecurrenceLoss

__all__ = [
    'BasisGroup',
    'CollectionWatch',
    'GateRateLoss',
    'OrthogonalityLoss',
    'OwnObjective',
    'RecurrenceLoss',
]
