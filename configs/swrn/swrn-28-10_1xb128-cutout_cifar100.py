_base_ = [
    '../_base_/models/swrn-28-10_cifar.py',
    '../_base_/datasets/cifar100_bs128_cutout.py',
    '../_base_/schedules/swrn_cifar_bs128_200e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(head=dict(num_classes=100, topk=(1, 5)))
