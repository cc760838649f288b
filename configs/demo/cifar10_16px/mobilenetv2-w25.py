_base_ = './mobilenetv2-w50.py'

model = dict(backbone=dict(width_mult=0.25), head=dict(in_channels=24))
