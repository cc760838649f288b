_base_ = './rla-preact-resnet164_1xb128_cifar10.py'

model = dict(backbone=dict(depth=110, rla_channels=4), head=dict(in_channels=64 + 4))
