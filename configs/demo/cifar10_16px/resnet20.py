_base_ = './r-resnet.py'

# About as many multiply-adds as dr-resnet.py has on average at its target rate.
model = dict(backbone=dict(blocks=(3, 3, 3), loops=(1, 1, 1)))
