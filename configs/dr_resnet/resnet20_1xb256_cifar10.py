_base_ = [
    '../_base_/models/dr-resnet74_cifar.py',
    '../_base_/datasets/cifar10_bs256.py',
    '../_base_/schedules/cifar_bs256_350e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

# No loops: the paper's counterpart.
model = dict(backbone=dict(depth=None, blocks=(3, 3, 3), loops=(1, 1, 1), stem='cifar'))
