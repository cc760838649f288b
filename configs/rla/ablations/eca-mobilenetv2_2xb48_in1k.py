_base_ = './mobilenetv2_2xb48_in1k.py'

model = dict(backbone=dict(attention='eca'))
