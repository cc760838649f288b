_base_ = './swrn-50-2_4xb64_in1k.py'

model = dict(backbone=dict(num_templates=None))
