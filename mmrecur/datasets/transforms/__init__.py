"""Transforms that the libraries lack."""

from mmrecur.datasets.transforms.cutout import CenteredCutout

__all__ = ['CenteredCutout']
