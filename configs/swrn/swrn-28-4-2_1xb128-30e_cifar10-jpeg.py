"""A short run of 30 epochs; the learning rate falls after the same fractions of the run as in 200 epochs."""

_base_ = [
    '../_base_/models/swrn-28-10_cifar.py',
    '../_base_/datasets/cifar10_folders.py',
    '../_base_/schedules/swrn_cifar_bs128_200e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(backbone=dict(width=4, num_templates=2), head=dict(in_channels=256))
train_cfg = dict(max_epochs=30)
param_scheduler = dict(milestones=[9, 18, 24])
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
custom_hooks = [dict(type='mmrecur.LayerSimilarityHook')]
