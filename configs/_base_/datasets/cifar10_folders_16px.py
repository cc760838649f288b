# CIFAR-10 at half the resolution: a quarter of the work, for comparisons on a CPU.
_base_ = './cifar10_folders.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=16, interpolation='area'),
            dict(type='RandomCrop', crop_size=16, padding=2),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=16, interpolation='area'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
