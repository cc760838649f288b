_base_ = './r-resnet.py'

model = dict(backbone=dict(loop_norm='shared'))
