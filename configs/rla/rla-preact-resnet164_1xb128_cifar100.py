_base_ = [
    '../_base_/models/rla-preact-resnet164_cifar.py',
    '../_base_/datasets/cifar100_bs128_45k.py',
    '../_base_/schedules/cifar_bs128_300e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(head=dict(num_classes=100))

# The paper reports the network of the epoch with the best validation accuracy.
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2))
