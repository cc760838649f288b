_base_ = './recnet.py'

model = dict(backbone=dict(recurrent=False))
