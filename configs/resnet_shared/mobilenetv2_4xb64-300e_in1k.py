_base_ = './mobilenetv2-shared_4xb64-300e_in1k.py'

# The plain network, trained by the recipe of the shared ones.
model = dict(backbone=dict(share=None))
