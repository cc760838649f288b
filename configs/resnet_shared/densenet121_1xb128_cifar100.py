_base_ = './densenet121-s16u1_1xb128_cifar100.py'

model = dict(backbone=dict(shared_rank=0, unique_rank=0))
