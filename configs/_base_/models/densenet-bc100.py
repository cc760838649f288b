model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmrecur.DenseNetBC', out_indices=(2,), depth=100, growth_rate=12),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=342,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
