_base_ = './recnet.py'

model = dict(backbone=dict(segments=(6, 12, 24)), head=dict(in_channels=96))
