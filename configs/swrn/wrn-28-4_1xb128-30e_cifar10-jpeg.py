_base_ = './swrn-28-4-2_1xb128-30e_cifar10-jpeg.py'

model = dict(backbone=dict(num_templates=None))
custom_hooks = []
