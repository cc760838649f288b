"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .rla_resnet import RLAResNet
from .swrn import SWRN

__all__ = [
    'SWRN',
    'Backbone',
    'RLAResNet',
]
