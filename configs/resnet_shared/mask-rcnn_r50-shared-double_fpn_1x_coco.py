_base_ = './mask-rcnn_r50-shared_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        share='double',
        init_cfg=dict(checkpoint='work_dirs/resnet50-shared-double_4xb64_in1k/epoch_150.pth'),
    )
)
