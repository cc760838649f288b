# The filter basis paper's Section 4.2: 300 epochs, the rate falls to a tenth at half and three quarters.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(milestones=[150, 225])
train_cfg = dict(max_epochs=300)
