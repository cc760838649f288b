_base_ = './resnet20.py'

model = dict(backbone=dict(base_channels=24), head=dict(in_channels=96))
