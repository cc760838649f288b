"""Public functions for scripts and notebooks.

Importing this package makes every checkpoint loader in the process read tensors only and refuse code, see
:func:`mmrecur.checkpoint.io.use_safe_loading`.
"""

from mmrecur.apis.models import get_model, list_models, register_models
from mmrecur.apis.swap import list_backbones, swap_backbone
from mmrecur.checkpoint.io import use_safe_loading
from mmrecur.errors import ToolError
from mmrecur.models.deployable import deploy
from mmrecur.models.norms import reestimate_norms

__all__ = [
    'ToolError',
    'deploy',
    'get_model',
    'list_backbones',
    'list_models',
    'reestimate_norms',
    'register_models',
    'swap_backbone',
]

use_safe_loading()
