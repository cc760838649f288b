_base_ = '../preact-resnet164_1xb128_cifar10.py'

model = dict(backbone=dict(extra_channels=12), head=dict(in_channels=256 + 12))
