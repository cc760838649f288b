# Everything that the COCO detectors with RLA-ResNet-50 share. A detector moves `backbone` into its model with
# `_base_.pop('backbone')`, since two bases of one config must not both define `model`.
_base_ = [
    '../schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
    '../mmrecur.py',
]

backbone = dict(
    type='mmrecur.RLAResNet',
    depth=50,
    # Freeze only the stem. The checkpoint belongs to a plain network, so a frozen stage 1 would never
    # learn to read its recurrent state. See "Initial weights" in configs/rla/README.md.
    frozen_stages=0,
    norm_eval=True,
    init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50'),
)
