# The filter basis paper's Section 4.1: 150 epochs, the rate falls to a tenth at 60, 100 and 140.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

param_scheduler = dict(milestones=[60, 100, 140])
train_cfg = dict(max_epochs=150)
