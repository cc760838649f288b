_base_ = './dr-resnet.py'

model = dict(backbone=dict(norm='lvbn'))
