model = dict(
    type='ImageClassifier',
    # with_hidden appends the final recurrent state to the features: 2048 + 32 channels.
    backbone=dict(type='mmrecur.RLAResNet', depth=50, out_indices=(3,), with_hidden=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048 + 32,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
