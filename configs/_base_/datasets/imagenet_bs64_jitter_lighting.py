# The recipe of Gross and Wilber (2016, fb.resnet.torch): crops of varying scale and aspect ratio, colour
# jitter, PCA lighting, bicubic interpolation. Their code squares the ratio that it draws from 3/4 to 4/3.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64.py'

train_pipeline = [
    # In floating point, because mmpretrain's Lighting wraps uint8 values around (256 becomes 0).
    dict(type='LoadImageFromFile', to_float32=True),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(9 / 16, 16 / 9),
        interpolation='bicubic',
    ),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, backend='cv2'),
    dict(
        type='Lighting',
        # Values from 0 to 255; the rows are the channels blue, green and red.
        eigval=[55.4625, 4.794, 1.1475],
        eigvec=[[-0.5836, -0.6948, 0.4203], [-0.5808, -0.0045, -0.814], [-0.5675, 0.7192, 0.4009]],
        alphastd=0.1,
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
