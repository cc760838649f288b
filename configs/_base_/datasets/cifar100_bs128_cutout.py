_base_ = './cifar100_bs128.py'

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # the mean of CIFAR-100
    dict(type='mmrecur.CenteredCutout', size=16, pad_val=(129.304, 124.070, 112.434)),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
