model = dict(
    type='ImageClassifier',
    # The last output is that of the 1x1 convolution to 1280 channels, which reads the final state too.
    backbone=dict(type='mmrecur.RLAMobileNetV2', out_indices=(7,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
