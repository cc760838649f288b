# The 1x schedule; coefficients have no weight decay.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0.0), row_scales=dict(decay_mult=0.0)))
)
