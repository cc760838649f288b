_base_ = [
    '../_base_/models/dr-mobilenetv2.py',
    '../_base_/datasets/imagenet_bs64_photometric.py',
    '../_base_/schedules/imagenet_bs256_400e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

# No loops: the paper's counterpart.
model = dict(backbone=dict(blocks=(1, 2, 3, 4, 3, 3, 1), loops=(1,) * 7, gated=False))
