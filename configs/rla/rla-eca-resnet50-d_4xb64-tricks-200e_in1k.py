_base_ = './rla-resnet50-d_4xb64-tricks-200e_in1k.py'

model = dict(backbone=dict(attention='eca'))
