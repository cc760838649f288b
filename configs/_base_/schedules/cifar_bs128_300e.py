# 300 epochs, Nesterov momentum, the learning rate falls by a factor of 10 at 150 and 225.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(nesterov=True))
param_scheduler = dict(milestones=[150, 225])
train_cfg = dict(max_epochs=300)
