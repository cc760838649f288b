_base_ = './resnet50-shared_4xb64_in1k.py'

# The 3x3 and the last 1x1 convolutions are shared.
model = dict(backbone=dict(share='double'))
