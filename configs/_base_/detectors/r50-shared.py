# Everything that the COCO detectors with ResNet50-Shared share. A detector moves `backbone` into its
# model with `_base_.pop('backbone')`, since two bases of one config must not both define `model`.
_base_ = [
    '../schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
    '../mmrecur.py',
]

custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]
backbone = dict(
    type='mmrecur.ResNetShared',
    depth=50,
    share='single',
    frozen_stages=1,
    norm_eval=True,
    # Written by the classification config; see "Initial weights" in configs/resnet_shared/README.md.
    init_cfg=dict(
        type='Pretrained',
        checkpoint='work_dirs/resnet50-shared_4xb64_in1k/epoch_150.pth',
        prefix='backbone.',
    ),
)
