_base_ = './mask-rcnn_r50-shared_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='work_dirs/resnet101-shared_4xb64_in1k/epoch_150.pth'),
    )
)
