_base_ = [
    '../_base_/models/resnet50-shared.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs256_300e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmrecur.MobileNetV2Shared', share='single'),
    head=dict(in_channels=1280),
)
