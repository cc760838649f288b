_base_ = '../rla-resnet101_4xb64_in1k.py'

model = dict(backbone=dict(share=None))
