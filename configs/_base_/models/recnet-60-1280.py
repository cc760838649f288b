model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmrecur.RecNet', arch='60-1280', out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=320,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
