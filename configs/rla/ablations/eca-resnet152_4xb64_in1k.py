_base_ = './resnet152_4xb64_in1k.py'

model = dict(backbone=dict(attention='eca'))
