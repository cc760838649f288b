_base_ = './resnet50-shared_4xb64_in1k.py'

# The plain network in the recipe of those that share.
model = dict(backbone=dict(share=None))
