_base_ = '../rla-preact-resnet164_1xb128_cifar10.py'

model = dict(backbone=dict(rla_channels=24), head=dict(in_channels=256 + 24))
