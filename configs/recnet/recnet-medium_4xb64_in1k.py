_base_ = './recnet-small_4xb64_in1k.py'

model = dict(backbone=dict(arch='medium'), head=dict(in_channels=640))
