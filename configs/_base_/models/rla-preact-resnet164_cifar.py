model = dict(
    type='ImageClassifier',
    # with_hidden appends the final recurrent state to the features: 256 + 12 channels.
    backbone=dict(type='mmrecur.RLAPreActResNet', depth=164, rla_channels=12, with_hidden=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256 + 12,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
