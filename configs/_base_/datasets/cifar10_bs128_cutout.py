# Cutout of 16x16 pixels. Blanked pixels get the mean, which normalisation turns into zero.
_base_ = './cifar10_bs128.py'

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmrecur.CenteredCutout', size=16, pad_val=(125.307, 122.961, 113.8575)),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
