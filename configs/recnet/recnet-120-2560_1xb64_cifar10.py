_base_ = './recnet-60-1280_1xb64_cifar10.py'

model = dict(backbone=dict(arch='120-2560'), head=dict(in_channels=640))
