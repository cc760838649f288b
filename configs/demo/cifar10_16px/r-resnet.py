# Loops without gates: all iterations are computed. Compared with the configs beside it.
_base_ = [
    '../../_base_/models/dr-resnet74_cifar.py',
    '../../_base_/datasets/cifar10_folders_16px.py',
    '../../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/mmrecur.py',
]

model = dict(backbone=dict(depth=None, blocks=(2, 2, 2), loops=(1, 4, 4), stem='cifar', gated=False))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
