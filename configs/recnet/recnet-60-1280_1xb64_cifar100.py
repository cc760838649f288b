_base_ = [
    '../_base_/models/recnet-60-1280.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_bs64_200e_restarts.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1))

model = dict(head=dict(num_classes=100))
