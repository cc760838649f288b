_base_ = [
    '../_base_/models/dr-resnet74_cifar.py',
    '../_base_/datasets/cifar10_bs256.py',
    '../_base_/schedules/cifar_bs256_350e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(backbone=dict(depth=32, gated=False))
