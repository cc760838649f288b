"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .resnet_shared import ResNetShared
from .rla_resnet import RLAResNet

__all__ = [
    'Backbone',
    'RLAResNet',
    'ResNetShared',
]
