_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

# GCNet: a global context block on the residual of every block but those of the first stage.
context = dict(
    cfg=dict(type='ContextBlock', ratio=1 / 16),
    stages=(False, True, True, True),
    position='after_conv3',
)
model = dict(backbone=dict(plugins=[context]))
