_base_ = './faster-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(attention='eca'))
