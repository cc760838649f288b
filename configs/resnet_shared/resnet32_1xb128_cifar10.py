_base_ = './resnet32-s16u1-double_1xb128_cifar10.py'

model = dict(backbone=dict(share=None))
