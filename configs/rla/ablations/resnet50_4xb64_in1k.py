_base_ = '../rla-resnet50_4xb64_in1k.py'

model = dict(backbone=dict(rla_channels=0, with_hidden=False), head=dict(in_channels=2048))
