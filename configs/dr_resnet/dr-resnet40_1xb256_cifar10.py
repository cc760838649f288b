_base_ = './dr-resnet74_1xb256_cifar10.py'

model = dict(backbone=dict(depth=40))
