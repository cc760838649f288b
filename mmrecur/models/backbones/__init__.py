"""Backbones, registered in ``mmrecur.registry.MODELS``."""

from mmrecur.models.backbones.base import Backbone
from mmrecur.models.backbones.densenet_bc import DenseNetBC
from mmrecur.models.backbones.densenet_shared import DenseNetShared
from mmrecur.models.backbones.dr_mobilenet_v2 import DRMobileNetV2
from mmrecur.models.backbones.dr_resnet import DRResNet
from mmrecur.models.backbones.dual_path_resnet import DualPathResNet
from mmrecur.models.backbones.mobilenet_v2_shared import MobileNetV2Shared
from mmrecur.models.backbones.recnet import RecNet
from mmrecur.models.backbones.resnet_shared import ResNetShared
from mmrecur.models.backbones.resnext_shared import ResNeXtShared
from mmrecur.models.backbones.rla_mobilenet_v2 import RLAMobileNetV2
from mmrecur.models.backbones.rla_preact_resnet import RLAPreActResNet
from mmrecur.models.backbones.rla_resnet import RLAResNet
from mmrecur.models.backbones.rla_xception import RLAXception
from mmrecur.models.backbones.shared_basis_backbone import SharedBasisBackbone
from mmrecur.models.backbones.swrn import SWRN

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
