"""ResNet-20 of half the width on CIFAR-10, four epochs for a CPU; a base for swaps."""

_base_ = [
    '../_base_/models/resnet32-shared_cifar.py',
    '../_base_/datasets/cifar10_folders.py',
    '../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.ResNetShared',
        depth=20,
        share=None,
        base_channels=8,
        out_indices=(2,),
    ),
    head=dict(in_channels=32),
)
custom_hooks = []
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
