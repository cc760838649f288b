_base_ = './resnet32_1xb128_cifar10.py'

model = dict(backbone=dict(depth=56))
