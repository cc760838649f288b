_base_ = './mask-rcnn_dr-r53_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        depth=35,
        loss_gate=dict(type='mmrecur.GateRateLoss', target_rate=0.8),
        init_cfg=dict(checkpoint='torchvision://resnet50'),
    )
)
