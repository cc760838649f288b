"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .rla_mobilenet_v2 import RLAMobileNetV2
from .rla_resnet import RLAResNet

__all__ = [
    'Backbone',
    'RLAMobileNetV2',
    'RLAResNet',
]
