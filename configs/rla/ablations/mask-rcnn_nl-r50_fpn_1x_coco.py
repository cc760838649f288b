_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

# One non-local block, before the last block of the third stage.
non_local = dict(
    cfg=dict(type='NonLocal2d'),
    stages=(False, False, True, False),
    position='before_last_block',
)
model = dict(backbone=dict(plugins=[non_local]))
