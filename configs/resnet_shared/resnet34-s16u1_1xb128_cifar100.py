_base_ = './resnet34-s32u1_1xb128_cifar100.py'

# The network of the paper's Section 4.4, with a record of the gradients of its bases. Figure 3d.
custom_hooks = [
    dict(type='mmrecur.AuxiliaryLossHook'),
    dict(type='mmrecur.GradientFlowHook', interval=10),
]
model = dict(backbone=dict(shared_rank=16))
