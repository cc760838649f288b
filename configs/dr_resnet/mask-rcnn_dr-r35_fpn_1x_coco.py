_base_ = './mask-rcnn_dr-r53_fpn_1x_coco.py'

model = dict(backbone=dict(depth=35, init_cfg=dict(checkpoint='torchvision://resnet50')))
