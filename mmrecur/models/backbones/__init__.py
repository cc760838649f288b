"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from .base import Backbone
from .densenet_bc import DenseNetBC
from .densenet_shared import DenseNetShared
from .dr_mobilenet_v2 import DRMobileNetV2
from .dr_resnet import DRResNet
from .dual_path_resnet import DualPathResNet
from .mobilenet_v2_shared import MobileNetV2Shared
from .recnet import RecNet
from .resnet_shared import ResNetShared
from .resnext_shared import ResNeXtShared
from .rla_mobilenet_v2 import RLAMobileNetV2
from .rla_preact_resnet import RLAPreActResNet
from .rla_resnet import RLAResNet
from .rla_xception import RLAXception
from .shared_basis import SharedBasisBackbone
from .swrn import SWRN

__all__ = [
    'SWRN',
    'Backbone',
    'DRMobileNetV2',
    'DRResNet',
    'DenseNetBC',
    'DenseNetShared',
    'DualPathResNet',
    'MobileNetV2Shared',
    'RLAMobileNetV2',
    'RLAPreActResNet',
    'RLAResNet',
    'RLAXception',
    'RecNet',
    'ResNeXtShared',
    'ResNetShared',
    'SharedBasisBackbone',
]
