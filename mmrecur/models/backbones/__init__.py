"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .densenet_shared import DenseNetShared
from .mobilenet_v2_shared import MobileNetV2Shared
from .resnet_shared import ResNetShared
from .resnext_shared import ResNeXtShared
from .rla_resnet import RLAResNet
from .shared_basis import SharedBasisBackbone

__all__ = [
    'Backbone',
    'DenseNetShared',
    'MobileNetV2Shared',
    'RLAResNet',
    'ResNeXtShared',
    'ResNetShared',
    'SharedBasisBackbone',
]
