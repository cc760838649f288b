"""Conversion of the authors' checkpoints, one file per source."""

from mmrecur.checkpoint.converters.convert import convert

__all__ = ['convert']
