_base_ = [
    '../_base_/models/dr-resnet74_cifar.py',
    '../_base_/datasets/cifar10_bs256.py',
    '../_base_/schedules/cifar_bs256_350e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/schedules/gate_hooks.py',
    '../_base_/mmrecur.py',
]
