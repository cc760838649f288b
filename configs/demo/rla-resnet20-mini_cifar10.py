# Half the usual width and 4 epochs, for a CPU. Compared with resnet20-mini_cifar10.py.
_base_ = [
    '../_base_/models/rla-preact-resnet164_cifar.py',
    '../_base_/datasets/cifar10_folders.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(depth=20, rla_channels=4, base_channels=8),
    head=dict(in_channels=32 + 4),
)
optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=4, T_max=4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=4)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
