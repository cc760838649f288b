_base_ = './resnet34-s32u1_1xb128_cifar100.py'

model = dict(backbone=dict(share=None))
