_base_ = './rla-xception_1xb128_cifar100.py'

model = dict(backbone=dict(rla_channels=0, with_hidden=False), head=dict(in_channels=512))
