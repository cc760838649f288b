# All 50,000 training images train; the 10,000 of the test set are the result, as in the RecNet paper.
_base_ = 'mmpretrain::_base_/datasets/cifar10_bs16.py'

train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=500)
test_dataloader = dict(batch_size=500)
