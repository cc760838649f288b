_base_ = './resnet34-s32u1_1xb128_cifar100.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.ResNeXtShared',
        depth=50,
        shared_rank=64,
        unique_rank=4,
        out_indices=(3,),
    ),
    head=dict(in_channels=2048),
)
