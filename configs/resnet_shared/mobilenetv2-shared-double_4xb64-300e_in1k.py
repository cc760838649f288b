_base_ = './mobilenetv2-shared_4xb64-300e_in1k.py'

# The authors' network with the double dagger attends to channels, of which the paper does not tell.
model = dict(backbone=dict(share='double', attention='eca'))
