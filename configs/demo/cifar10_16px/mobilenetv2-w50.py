# MobileNetV2 at half its width up to the stage of stride 16; images of 16 pixels are enlarged to 32 for it.
_base_ = [
    '../../_base_/models/rla-mobilenetv2.py',
    '../../_base_/datasets/cifar10_folders_16px.py',
    '../../_base_/schedules/cifar_demo_4e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(width_mult=0.5, rla_channels=0, out_indices=(4,)),
    head=dict(num_classes=10, in_channels=48, topk=(1,)),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=16, interpolation='area'),
            dict(type='RandomCrop', crop_size=16, padding=2),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='Resize', scale=32, interpolation='bilinear'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=16, interpolation='area'),
            dict(type='Resize', scale=32, interpolation='bilinear'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
