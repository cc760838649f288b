_base_ = './recnet-60-1280_1xb64_cifar100.py'

model = dict(backbone=dict(arch='30-60'), head=dict(in_channels=80))
