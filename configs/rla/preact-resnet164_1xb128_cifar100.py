# The plain network that RLA is compared with.
_base_ = './rla-preact-resnet164_1xb128_cifar100.py'

model = dict(backbone=dict(rla_channels=0, with_hidden=False), head=dict(in_channels=256))
