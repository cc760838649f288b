# Everything that the COCO detectors with DR-ResNet 53 share. A detector moves `backbone` into its model with
# `_base_.pop('backbone')`, since two bases of one config must not both define `model`.
_base_ = [
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../schedules/gate_hooks.py',
    '../mmrecur.py',
]

backbone = dict(
    type='mmrecur.DRResNet',
    depth=53,
    frozen_stages=1,
    norm_eval=True,
    # Stands in for a DR-ResNet trained on ImageNet; see "Detectors" in configs/dr_resnet/README.md.
    init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet101'),
)
