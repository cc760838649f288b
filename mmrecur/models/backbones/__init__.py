"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .rla_preact_resnet import RLAPreActResNet
from .rla_resnet import RLAResNet

__all__ = ['Backbone', 'RLAPreActResNet', 'RLAResNet']
