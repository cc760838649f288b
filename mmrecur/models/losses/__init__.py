"""Objectives of modules themselves, beside a head's losses; ``AuxiliaryLossHook`` collects them."""

from .collection import CollectionWatch
from .orthogonality import BasisGroup, OrthogonalityLoss
from .recurrence import RecurrenceLoss

__all__ = ['BasisGroup', 'CollectionWatch', 'OrthogonalityLoss', 'RecurrenceLoss']
