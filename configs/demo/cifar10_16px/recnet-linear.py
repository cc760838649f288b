_base_ = './recnet.py'

model = dict(backbone=dict(activation='linear'))
