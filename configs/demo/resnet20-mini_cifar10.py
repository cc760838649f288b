# The plain network that rla-resnet20-mini_cifar10.py is compared with.
_base_ = './rla-resnet20-mini_cifar10.py'

model = dict(backbone=dict(rla_channels=0, with_hidden=False), head=dict(in_channels=32))
