_base_ = './faster-rcnn_r50-shared-graft_fpn_1x_coco.py'

model = dict(backbone=dict(share='double'))
