# Train on all 50,000 training images and report the accuracy on the test set, as in the RecNet paper.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=500)
test_dataloader = dict(batch_size=500)
