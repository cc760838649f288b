_base_ = './resnext50-s64u4_1xb128_cifar100.py'

model = dict(backbone=dict(shared_rank=0))
