model = dict(
    type='ImageClassifier',
    # with_hidden appends the final recurrent state to the features: 512 + 12 channels.
    backbone=dict(type='mmrecur.RLAXception', out_indices=(2,), rla_channels=12, with_hidden=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=512 + 12,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
