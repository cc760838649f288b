_base_ = [
    'mmpretrain::_base_/models/wide-resnet50.py',
    '../_base_/datasets/imagenet_bs64_jitter_lighting.py',
    '../_base_/schedules/swrn_imagenet_bs256_90e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmrecur.SWRN', depth=50, width=2, out_indices=(3,)),
)
