_base_ = '../recnet-60-1280_1xb64_cifar100.py'

model = dict(backbone=dict(activation='shared_bn'))
