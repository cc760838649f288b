"""Section B.2.2 of the paper: ResNet-D, label smoothing, mixup, warm-up and cosine schedule."""

_base_ = [
    '../_base_/models/rla-resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    'mmpretrain::_base_/schedules/imagenet_bs256_200e_coslr_warmup.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(deep_stem=True, avg_down=True),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1)),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
