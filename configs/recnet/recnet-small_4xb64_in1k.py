_base_ = [
    '../_base_/models/recnet-small.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs256_120e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]
