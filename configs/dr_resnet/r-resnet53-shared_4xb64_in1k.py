_base_ = './r-resnet53_4xb64_in1k.py'

model = dict(backbone=dict(loop_norm='shared'))
