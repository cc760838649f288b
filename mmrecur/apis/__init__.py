"""What a script or a notebook calls.

Importing this package makes the process load checkpoints as data only, whichever library loads them: see
:func:`mmrecur.checkpoint.io.use_safe_loading`.
"""

from mmrecur.checkpoint.io import use_safe_loading

from .deploy import deploy
from .models import get_model, list_models, register_models
from .swap import list_backbones, swap_backbone

__all__ = [
    'deploy',
    'get_model',
    'list_backbones',
    'list_models',
    'register_models',
    'swap_backbone',
]

use_safe_loading()
