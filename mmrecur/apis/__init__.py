"""What a script or a notebook calls.

Importing this package makes the process load checkpoints as data only, whichever library loads them: see
:func:`mmrecur.checkpoint.io.use_safe_loading`.
"""

from mmrecur.apis.deploy import deploy
from mmrecur.apis.models import get_model, list_models, register_models
from mmrecur.apis.swap import list_backbones, swap_backbone
from mmrecur.checkpoint.io import use_safe_loading
from mmrecur.errors import ToolError

__all__ = [
    'ToolError',
    'deploy',
    'get_model',
    'list_backbones',
    'list_models',
    'register_models',
    'swap_backbone',
]

use_safe_loading()
