model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmrecur.SWRN', depth=28, width=10, out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=640,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
