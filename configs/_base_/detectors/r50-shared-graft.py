# What the COCO detectors change that graft a plain ResNet-50 into ResNet50-Shared. A detector moves
# `graft_backbone` into its model with `_base_.pop('graft_backbone')`.

# The graft is not exact, so the whole network learns. Norms use the statistics of all processes' images.
graft_backbone = dict(
    frozen_stages=-1,
    norm_eval=False,
    init_cfg=dict(_delete_=True, type='mmrecur.Graft', checkpoint='torchvision://resnet50'),
)
sync_bn = 'torch'
