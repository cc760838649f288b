_base_ = './swrn-28-10_1xb128-cutout_cifar10.py'

model = dict(backbone=dict(width=14), head=dict(in_channels=896))
