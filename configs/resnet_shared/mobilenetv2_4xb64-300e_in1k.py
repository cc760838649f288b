_base_ = './mobilenetv2-shared_4xb64-300e_in1k.py'

# The plain network in the recipe of those that share.
model = dict(backbone=dict(share=None))
