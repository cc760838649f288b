_base_ = '../rla-preact-resnet164_1xb128_cifar10.py'

model = dict(backbone=dict(share=None))
