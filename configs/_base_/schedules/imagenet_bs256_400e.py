# DR-MobileNetV2 and its counterpart in the DR paper: 400 epochs from 0.01, a tenth after 200 and 300.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(milestones=[200, 300])
train_cfg = dict(max_epochs=400)
