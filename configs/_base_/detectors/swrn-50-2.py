# Everything that the COCO detectors with SWRN-50-2 share. A detector moves `backbone` into its model with
# `_base_.pop('backbone')`, since two bases of one config must not both define `model`.
_base_ = [
    '../schedules/swrn_coco_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../mmrecur.py',
]

backbone = dict(
    type='mmrecur.SWRN',
    depth=50,
    width=2,
    frozen_stages=1,
    norm_eval=True,
    # With one template per layer, the graft is exact.
    init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://wide_resnet50_2'),
)
