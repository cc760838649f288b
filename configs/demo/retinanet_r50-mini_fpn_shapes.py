"""RetinaNet with a narrow plain ResNet-50 on rendered shapes, a base for swaps."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_9e.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    # The same backbone as in faster-rcnn_r50-mini_fpn_shapes.py.
    backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=50,
        base_channels=16,
        stem_channels=16,
        norm_eval=False,
    ),
    # The shapes measure from 10 to 64 pixels, so the pyramid begins at stride 4 and has four levels.
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        num_outs=4,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=5,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3, scales_per_octave=2, strides=[4, 8, 16, 32]),
    ),
)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'),
)
