_base_ = './resnet32-s16u1-double.py'

model = dict(backbone=dict(loss_ortho=None))
