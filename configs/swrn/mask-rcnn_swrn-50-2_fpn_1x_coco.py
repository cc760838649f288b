_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/swrn_coco_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.SWRN',
        depth=50,
        width=2,
        frozen_stages=1,
        norm_eval=True,
        # one template per layer: the network starts as the plain one
        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://wide_resnet50_2'),
    )
)
