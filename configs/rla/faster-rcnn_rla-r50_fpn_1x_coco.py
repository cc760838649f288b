_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.RLAResNet',
        depth=50,
        # The stem only: the checkpoint below is of a plain network, so freezing stage 1 as well
        # would keep its recurrent parts from learning. See "Initial weights" in README.md.
        frozen_stages=0,
        norm_eval=True,
        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50'),
    )
)
