# The paper's network for CIFAR-10 on images of half the size. Compared with -no-ortho and resnet32.py.
_base_ = [
    '../../_base_/models/resnet32-shared_cifar.py',
    '../../_base_/datasets/cifar10_folders_16px.py',
    '../../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/mmrecur.py',
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
