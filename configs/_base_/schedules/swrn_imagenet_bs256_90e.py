# Gross and Wilber (2016): SGD with Nesterov momentum, 90 epochs, the learning rate falls by a factor of 10
# after 30 and 60. Coefficients have no weight decay.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(
    optimizer=dict(nesterov=True),
    paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0.0), row_scales=dict(decay_mult=0.0))),
)
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
