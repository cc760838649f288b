_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(
    # No weights are published, so nothing is frozen. README.md says how to start from a classifier.
    backbone=dict(_delete_=True, type='mmrecur.RecNet', arch='medium'),
    neck=dict(in_channels=[160, 320, 640, 640]),
)
# MMDetection's rate for RetinaNet is half of the other detectors'. From scratch a detector of this depth
# wants its gradients bounded.
optim_wrapper = dict(optimizer=dict(lr=0.005), clip_grad=dict(max_norm=35, norm_type=2))
