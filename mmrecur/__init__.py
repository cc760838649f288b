"""Recurrent, weight-sharing CNN backbones for MMEngine, MMDetection and MMPretrain.

Importing this package only creates the registries, so
``custom_imports = dict(imports=['mmrecur'])`` is all that a config needs; the modules themselves are
imported when a registry is first asked for one.
"""

from . import registry
from .version import __version__

__all__ = ['__version__', 'registry']
