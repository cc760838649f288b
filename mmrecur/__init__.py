"""Recurrent, weight-sharing CNN backbones for MMEngine, MMDetection and MMPretrain.

Importing this package only creates the registries, so
``custom_imports = dict(imports=['mmrecur'])`` is all that a config needs; the modules themselves are
imported when a registry is first asked for one.
"""

import torch
from mmengine.utils import digit_version

from mmrecur import registry
from mmrecur.version import __version__

if digit_version(torch.__version__) < digit_version('2.4.0'):
    raise ImportError(f'mmrecur needs PyTorch 2.4 or newer, this is {torch.__version__}')

__all__ = ['__version__', 'registry']
