_base_ = './resnet50_4xb64_in1k.py'

model = dict(backbone=dict(extra_channels=32), head=dict(in_channels=2048 + 32))
