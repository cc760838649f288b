_base_ = ['./r-resnet.py', '../../_base_/schedules/gate_hooks.py']

model = dict(backbone=dict(gated=True))
