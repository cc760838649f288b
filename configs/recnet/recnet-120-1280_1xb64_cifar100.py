_base_ = './recnet-60-1280_1xb64_cifar100.py'

model = dict(backbone=dict(arch='120-1280'))
