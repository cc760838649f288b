"""Metrics the libraries lack."""

from .f1 import PixelF1

__all__ = ['PixelF1']
