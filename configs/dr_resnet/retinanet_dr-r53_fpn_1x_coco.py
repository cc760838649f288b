_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/gate_hooks.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.DRResNet',
        depth=53,
        frozen_stages=1,
        norm_eval=True,
        # A stand-in for weights of a DR-ResNet trained on ImageNet. See "Detectors" in README.md.
        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet101'),
    )
)
# MMDetection's rate for RetinaNet.
optim_wrapper = dict(optimizer=dict(lr=0.01))
