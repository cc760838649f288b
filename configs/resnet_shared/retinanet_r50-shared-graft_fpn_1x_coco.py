_base_ = ['./retinanet_r50-shared_fpn_1x_coco.py', '../_base_/detectors/r50-shared-graft.py']

model = dict(backbone=_base_.pop('graft_backbone'))
