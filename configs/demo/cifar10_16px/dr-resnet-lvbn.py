_base_ = './dr-resnet.py'

model = dict(backbone=dict(loop_norm='lvbn'))
