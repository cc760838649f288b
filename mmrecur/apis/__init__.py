"""What a script or a notebook calls."""

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
