_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/detectors/r50-shared.py',
]

model = dict(backbone=dict(_delete_=True, **_base_.pop('backbone')))
