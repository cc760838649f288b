_base_ = './r-resnet.py'

model = dict(backbone=dict(norm='shared'))
