"""Faster R-CNN with a narrow plain ResNet-50 on rendered shapes, a base for swaps."""

_base_ = './faster-rcnn_rla-r50-mini_fpn_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=50,
        base_channels=16,
        stem_channels=16,
        norm_eval=False,
    ),
)
