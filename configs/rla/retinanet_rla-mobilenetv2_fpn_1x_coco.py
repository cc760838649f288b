_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.RLAMobileNetV2',
        out_indices=(1, 2, 4, 6),
        # Freeze only the stem; see "Initial weights" in README.md.
        frozen_stages=0,
        norm_eval=True,
        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
