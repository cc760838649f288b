"""Transforms the libraries lack."""

from .cutout import CenteredCutout

__all__ = ['CenteredCutout']
