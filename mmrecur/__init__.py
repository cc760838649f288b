"""Recurrent, weight-sharing CNN backbones for MMEngine, MMDetection and MMPretrain.

Importing this package only creates its registries, so ``custom_imports = dict(imports=['mmrecur'])`` is all
that a config needs: a registry imports the modules that fill it when it is first searched. Without MMEngine
there are no registries, and only :mod:`mmrecur.models.layers` can be used.
"""

import torch

from mmrecur.version import __version__

if torch.__version__ < (2, 4):
    raise ImportError(f'mmrecur needs PyTorch 2.4 or newer, found {torch.__version__}')

try:
    from mmrecur import registry  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':  # an MMEngine that lacks a dependency of its own is an error
        raise

__all__ = ['__version__']
