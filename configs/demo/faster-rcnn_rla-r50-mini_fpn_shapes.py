"""Faster R-CNN with a narrow RLA-ResNet-50 on rendered shapes: minutes on two CPU cores."""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_9e.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    # Backbone and recurrent state have a quarter of the usual width. The stem of ResNet-D suits small
    # images. The detector trains from scratch, so nothing is frozen and the FPN has norms too.
    backbone=dict(
        _delete_=True,
        type='mmrecur.RLAResNet',
        depth=50,
        base_channels=16,
        rla_channels=8,
        deep_stem=True,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4, norm_cfg=dict(type='BN')),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # 12, 24, 48 and 96 pixels; the shapes measure from 10 to 64.
        anchor_generator=dict(scales=[3], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # A bin of a RoI is about as large as a cell of its feature map, so one sample suffices.
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=64, finest_scale=16),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
    ),
    # Few proposals and samples suffice for at most six shapes per image. Half of the samples are positive,
    # because the classes take longest to learn.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'),
)
