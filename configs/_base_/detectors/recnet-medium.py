# Everything that the COCO detectors with RecNet-medium share. A detector moves `backbone` into its model with
# `_base_.pop('backbone')`, since two bases of one config must not both define `model`.
_base_ = [
    '../schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
    '../mmrecur.py',
]

# No weights are published, so the backbone starts at random and nothing is frozen.
# configs/recnet/README.md shows how to start from a classifier.
backbone = dict(type='mmrecur.RecNet', arch='medium')
