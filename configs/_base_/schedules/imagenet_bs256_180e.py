# R-ResNet-53* of the DR paper's Table 3: a smaller learning rate, more decay, more epochs.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=0.0005))
param_scheduler = dict(milestones=[100, 130, 160])
train_cfg = dict(max_epochs=180)
