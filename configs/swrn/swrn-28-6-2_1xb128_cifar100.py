_base_ = './swrn-28-10_1xb128_cifar100.py'

model = dict(backbone=dict(width=6, num_templates=2), head=dict(in_channels=384))
