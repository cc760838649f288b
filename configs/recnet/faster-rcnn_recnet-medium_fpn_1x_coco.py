_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/detectors/recnet-medium.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    neck=dict(in_channels=[160, 320, 640, 640]),
)
# A detector of this depth that trains from scratch needs its gradients clipped.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
