# The RecNet paper's Section 3: 200 epochs of Nesterov SGD, cosine annealing that restarts at 20, 60 and 120.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))
param_scheduler = dict(
    _delete_=True,
    type='CosineRestartLR',
    by_epoch=True,
    periods=[20, 40, 60, 80],
    restart_weights=[1, 1, 1, 1],
    eta_min=0,
)
train_cfg = dict(max_epochs=200)
auto_scale_lr = dict(base_batch_size=64)
