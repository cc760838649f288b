# The RLA paper's Section 4.1: 300 epochs of Nesterov SGD, the rate falls to a tenth at 150 and 225.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(nesterov=True))
param_scheduler = dict(milestones=[150, 225])
train_cfg = dict(max_epochs=300)
