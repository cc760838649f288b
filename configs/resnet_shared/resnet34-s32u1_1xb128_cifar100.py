_base_ = [
    '../_base_/models/resnet34-shared_cifar.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar_bs128_300e_shared.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]
