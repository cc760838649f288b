custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmrecur.ResNetShared',
        depth=34,
        stem='cifar',
        out_indices=(3,),
        shared_rank=32,
        unique_rank=1,
        bases=1,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
