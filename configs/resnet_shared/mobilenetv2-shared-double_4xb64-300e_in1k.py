_base_ = './mobilenetv2-shared_4xb64-300e_in1k.py'

# The authors' network with the double dagger also has channel attention, which the paper does not mention.
model = dict(backbone=dict(share='double', attention='eca'))
