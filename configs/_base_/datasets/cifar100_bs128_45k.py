# The RLA paper's split of CIFAR: train on 45,000 training images, validate on the last 5,000.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_dataloader = dict(batch_size=128, dataset=dict(indices=45000))
val_dataloader = dict(batch_size=500, dataset=dict(split='train', indices=-5000))
test_dataloader = dict(batch_size=500)
