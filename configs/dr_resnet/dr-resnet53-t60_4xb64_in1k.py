_base_ = './dr-resnet53_4xb64_in1k.py'

model = dict(backbone=dict(loss_gate=dict(type='mmrecur.GateRateLoss', target_rate=0.6)))
