"""Objectives beside a model's own, collected by ``AuxiliaryLossHook``."""

from .recurrence import RecurrenceLoss

__all__ = ['RecurrenceLoss']
