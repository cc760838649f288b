_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/detectors/swrn-50-2.py',
]

model = dict(backbone=dict(_delete_=True, **_base_.pop('backbone')))
# MMDetection trains RetinaNet at half the other detectors' learning rate.
optim_wrapper = dict(optimizer=dict(lr=0.01))
