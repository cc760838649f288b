_base_ = [
    '../_base_/models/dr-resnet53.py',
    '../_base_/datasets/imagenet_bs64_photometric.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(backbone=dict(gated=False))
