"""A narrow RLA-ResNet-50 classifies rendered shapes: a minute or two on two CPU cores.

The pictures are written by
``python tools/dataset_converters/make_shapes.py data/shapes-cls --task classification``.
"""

_base_ = [
    '../_base_/models/rla-resnet50.py',
    '../_base_/datasets/shapes_classification.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(
    backbone=dict(base_channels=16),
    head=dict(num_classes=5, in_channels=512 + 32, topk=(1,)),
)

train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=10,
        T_max=10,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=2, save_best='accuracy/top1'),
)
