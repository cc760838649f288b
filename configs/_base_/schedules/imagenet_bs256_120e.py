# 120 epochs, the learning rate falls by a factor of 10 every 30 (at 30, 60 and 90).
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

train_cfg = dict(max_epochs=120)
