"""Metrics that the libraries lack."""

from mmrecur.evaluation.f1 import PixelF1

__all__ = ['PixelF1']
