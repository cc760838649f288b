_base_ = './swrn-28-10_1xb128_cifar10.py'

model = dict(backbone=dict(width=18, dropout=0.3), head=dict(in_channels=1152))
