# RecNet-24-256: the widths of RecNet-60-640 (Table 3) with four steps. Compared with the configs beside it.
_base_ = [
    '../../_base_/models/recnet-60-1280.py',
    '../../_base_/datasets/cifar10_folders_16px.py',
    '../../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/mmrecur.py',
]

model = dict(backbone=dict(segments=(4, 8, 16), steps=(4, 4, 4)), head=dict(in_channels=64))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
