"""What a script or a notebook calls."""

from .deploy import deploy
from .models import get_model, list_models

__all__ = ['deploy', 'get_model', 'list_models']
