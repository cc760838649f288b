_base_ = './swrn-28-1-2.py'

model = dict(backbone=dict(num_templates=None))
custom_hooks = []
