"""Objectives of modules themselves, beside a head's losses."""

from .collection import CollectionWatch
from .gate_rate import GateRateLoss

__all__ = ['CollectionWatch', 'GateRateLoss']
