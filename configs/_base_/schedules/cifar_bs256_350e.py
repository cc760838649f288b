# The DR paper's Section 4.1: 350 epochs, the rate falls to a tenth after 150 and 250.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(weight_decay=0.0005))
param_scheduler = dict(milestones=[150, 250])
train_cfg = dict(max_epochs=350)
auto_scale_lr = dict(base_batch_size=256)
