_base_ = './retinanet_r101_fpn_1x_coco.py'

model = dict(backbone=dict(attention='se'))
