_base_ = './recnet-60-1280_1xb64_cifar10.py'

model = dict(backbone=dict(arch='90-1920'), head=dict(in_channels=480))
