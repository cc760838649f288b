_base_ = '../faster-rcnn_rla-r50_fpn_1x_coco.py'

model = dict(backbone=dict(rla_channels=0))
