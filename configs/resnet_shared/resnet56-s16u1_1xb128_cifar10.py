_base_ = './resnet56-s16u1-double_1xb128_cifar10.py'

model = dict(backbone=dict(bases=1))
