custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmrecur.ResNetShared',
        depth=32,
        out_indices=(2,),
        shared_rank=16,
        unique_rank=1,
        bases=2,
        # On CIFAR-10 the penalty includes the unique filters.
        loss_ortho=dict(type='mmrecur.OrthogonalityLoss', loss_weight=10.0, with_unique=True),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
