# The same paper's schedule of MobileNetV2: 300 epochs, the rate falls to a tenth at 150, 225 and 285.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
param_scheduler = dict(milestones=[150, 225, 285])
train_cfg = dict(max_epochs=300)
