_base_ = './densenet-bc100_1xb128_cifar10.py'

model = dict(backbone=dict(share='ordinal'))
