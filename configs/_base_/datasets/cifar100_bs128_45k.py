# As the RLA paper splits CIFAR: 45,000 of the training images train, the last 5,000 validate.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_dataloader = dict(batch_size=128, dataset=dict(indices=45000))
val_dataloader = dict(batch_size=500, dataset=dict(split='train', indices=-5000))
test_dataloader = dict(batch_size=500)
