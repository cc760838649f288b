# Learning rate 0.045 at a batch of 96 images (2 GPUs x 48), times 0.98 every epoch, for 400 epochs.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256_epochstep.py'

train_cfg = dict(max_epochs=400)
auto_scale_lr = dict(base_batch_size=96)
