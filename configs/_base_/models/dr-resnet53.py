model = dict(
    type='ImageClassifier',
    # The stride is on the first 1x1 convolution, as the multiply-adds in the paper's Table 2 imply.
    backbone=dict(type='mmrecur.DRResNet', depth=53, style='caffe', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
