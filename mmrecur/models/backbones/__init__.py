"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .densenet_bc import DenseNetBC
from .dr_mobilenet_v2 import DRMobileNetV2
from .dr_resnet import DRResNet
from .dual_path_resnet import DualPathResNet
from .rla_mobilenet_v2 import RLAMobileNetV2
from .rla_preact_resnet import RLAPreActResNet
from .rla_resnet import RLAResNet
from .rla_xception import RLAXception

__all__ = [
    'Backbone',
    'DRMobileNetV2',
    'DRResNet',
    'DenseNetBC',
    'DualPathResNet',
    'RLAMobileNetV2',
    'RLAPreActResNet',
    'RLAResNet',
    'RLAXception',
]
