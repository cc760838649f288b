_base_ = './r-resnet.py'

# Costs about as many multiply-adds as dr-resnet.py on average at its target rate.
model = dict(backbone=dict(blocks=(3, 3, 3), loops=(1, 1, 1)))
