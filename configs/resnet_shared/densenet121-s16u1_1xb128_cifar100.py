_base_ = './resnet34-s32u1_1xb128_cifar100.py'

model = dict(
    backbone=dict(_delete_=True, type='mmrecur.DenseNetShared', depth=121, shared_rank=16, unique_rank=1),
    head=dict(in_channels=1024),
)
