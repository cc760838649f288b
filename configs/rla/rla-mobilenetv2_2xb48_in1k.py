_base_ = [
    '../_base_/models/rla-mobilenetv2.py',
    'mmpretrain::_base_/datasets/imagenet_bs64.py',
    '../_base_/schedules/imagenet_bs96_400e.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmrecur.py',
]

train_dataloader = dict(batch_size=48)
