_base_ = './r-resnet53_4xb64_in1k.py'

# No loops: the paper's counterpart.
model = dict(backbone=dict(depth=None, blocks=(3, 4, 6, 3), loops=(1, 1, 1, 1)))
