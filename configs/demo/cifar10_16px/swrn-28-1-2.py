# The layers of equal shape in a stage share two templates. Compared with wrn-28-1.py.
_base_ = [
    '../../_base_/models/swrn-28-10_cifar.py',
    '../../_base_/datasets/cifar10_folders_16px.py',
    '../../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/mmrecur.py',
]

model = dict(backbone=dict(depth=28, width=1, num_templates=2), head=dict(in_channels=64))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0.0))))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
custom_hooks = [dict(type='mmrecur.LayerSimilarityHook')]
