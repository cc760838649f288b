model = dict(
    type='ImageClassifier',
    # Outputs 256 channels of the residual path and (2 + 18) x 12 of the dense path.
    backbone=dict(type='mmrecur.DualPathResNet', out_indices=(2,), depth=164, dense_channels=12),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256 + 240,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
