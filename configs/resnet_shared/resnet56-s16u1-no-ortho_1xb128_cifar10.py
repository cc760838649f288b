_base_ = './resnet56-s16u1_1xb128_cifar10.py'

model = dict(backbone=dict(loss_ortho=None))
