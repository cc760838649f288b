_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_bs8.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)
custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook')]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrecur.ResNetShared',
        depth=50,
        share='single',
        frozen_stages=1,
        norm_eval=True,
        # What the classification config of this folder trains; see "Initial weights" in README.md.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet50-shared_4xb64_in1k/epoch_150.pth',
            prefix='backbone.',
        ),
    )
)
