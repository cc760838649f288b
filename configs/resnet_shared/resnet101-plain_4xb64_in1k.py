_base_ = './resnet50-plain_4xb64_in1k.py'

model = dict(backbone=dict(depth=101))
