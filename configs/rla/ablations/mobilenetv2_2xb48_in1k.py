_base_ = '../rla-mobilenetv2_2xb48_in1k.py'

model = dict(backbone=dict(rla_channels=0))
