_base_ = './recnet-60-1280_1xb64_cifar100.py'

model = dict(backbone=dict(arch='120-2880'), head=dict(in_channels=720))
