_base_ = './r-resnet32_1xb256_cifar10.py'

model = dict(backbone=dict(loop_norm='shared'))
