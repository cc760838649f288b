_base_ = './dr-resnet53_4xb64_in1k.py'

model = dict(backbone=dict(depth=35))  # its target rate is 0.8
