_base_ = [
    '../_base_/models/resnet32-shared_cifar.py',
    '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar_bs128_300e_shared.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]
