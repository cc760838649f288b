_base_ = [
    '../_base_/models/dpn-resnet164.py',
    '../_base_/datasets/cifar10_bs128_45k.py',
    '../_base_/schedules/cifar_bs128_300e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]
# The paper reports the model with the highest validation accuracy.
default_hooks = dict(checkpoint=dict(save_best='auto', max_keep_ckpts=3))
