_base_ = './recnet.py'

model = dict(backbone=dict(segments=(2, 4, 8)), head=dict(in_channels=32))
