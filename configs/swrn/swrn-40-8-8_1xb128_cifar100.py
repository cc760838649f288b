_base_ = './swrn-28-10_1xb128_cifar100.py'

model = dict(backbone=dict(depth=40, width=8, num_templates=8), head=dict(in_channels=512))
