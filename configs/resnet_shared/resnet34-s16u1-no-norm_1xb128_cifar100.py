_base_ = './resnet34-s16u1_1xb128_cifar100.py'

# Figure 3c: the penalty, no norms after the bases.
model = dict(backbone=dict(basis_norm=False))
