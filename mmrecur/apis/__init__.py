"""What a script or a notebook calls."""

from .deploy import deploy

__all__ = ['deploy']
