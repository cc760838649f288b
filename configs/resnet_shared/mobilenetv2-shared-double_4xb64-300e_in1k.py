_base_ = './mobilenetv2-shared_4xb64-300e_in1k.py'

# The slopes are 17 parameters that the authors' network has and the paper does not tell of.
model = dict(backbone=dict(share='double', act='prelu'))
