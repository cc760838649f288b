_base_ = './mobilenetv2-w50.py'

model = dict(backbone=dict(width_mult=0.75), head=dict(in_channels=72))
