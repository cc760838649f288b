_base_ = './resnet50-shared_4xb64_in1k.py'

# All three convolutions are shared: basis and coefficients.
model = dict(backbone=dict(share='all'))
