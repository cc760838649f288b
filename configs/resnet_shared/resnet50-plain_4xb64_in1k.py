_base_ = './resnet50-shared_4xb64_in1k.py'

# The plain network, trained by the recipe of the shared ones.
model = dict(backbone=dict(share=None))
