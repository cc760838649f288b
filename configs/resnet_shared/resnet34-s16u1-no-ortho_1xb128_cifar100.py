_base_ = './resnet34-s16u1_1xb128_cifar100.py'

# Figure 3b: norms after the bases, no penalty.
model = dict(backbone=dict(loss_ortho=None))
