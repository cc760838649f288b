_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
custom_imports = dict(imports=['mmrecur', 'mmrecur.models.heads.ssd_head'], allow_failed_imports=False)

model = dict(
    # Keeps the out_indices, norms and initialisation of MMDetection's MobileNetV2.
    backbone=dict(type='mmrecur.RLAMobileNetV2'),
    bbox_head=dict(type='mmrecur.SSDHead'),
)
