"""Objectives of modules themselves, beside a head's losses."""

from .collection import CollectionWatch
from .orthogonality import BasisGroup, OrthogonalityLoss

__all__ = ['BasisGroup', 'CollectionWatch', 'OrthogonalityLoss']
