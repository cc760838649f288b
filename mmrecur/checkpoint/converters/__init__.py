"""Conversion of the authors' checkpoints.

Each file maps the parameter names of one source to the names of this package; ``convert.py`` selects the
file.
"""

from mmrecur.checkpoint.converters.convert import convert

__all__ = ['convert']
