"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .rla_resnet import RLAResNet

__all__ = ['Backbone', 'RLAResNet']
