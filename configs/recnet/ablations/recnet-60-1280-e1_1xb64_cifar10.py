_base_ = '../recnet-60-1280_1xb64_cifar10.py'

model = dict(backbone=dict(expansion=1))
