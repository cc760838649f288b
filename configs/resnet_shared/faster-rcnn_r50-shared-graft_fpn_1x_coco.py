_base_ = './faster-rcnn_r50-shared_fpn_1x_coco.py'

# The graft is not exact, so the whole network learns. Norms use the statistics of all processes' images.
model = dict(
    backbone=dict(
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(_delete_=True, type='mmrecur.Graft', checkpoint='torchvision://resnet50'),
    )
)
sync_bn = 'torch'
