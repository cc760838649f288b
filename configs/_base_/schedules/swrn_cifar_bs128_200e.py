# The SWRN paper's schedule, that of Wide ResNets: batches of 128, 200 epochs; the learning
# rate falls by a factor of 5 after 60, 120 and 160. Coefficients have no weight decay.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(
    optimizer=dict(weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0.0), row_scales=dict(decay_mult=0.0))),
)
param_scheduler = dict(milestones=[60, 120, 160], gamma=0.2)
