_base_ = './densenet-bc100_1xb128-300e_cifar10.py'

model = dict(backbone=dict(sharing='lag'))
