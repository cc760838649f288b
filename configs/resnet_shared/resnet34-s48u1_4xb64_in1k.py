_base_ = './resnet50-shared_4xb64_in1k.py'

model = dict(
    backbone=dict(depth=34, shared_rank=48, unique_rank=1, bases=2),
    head=dict(in_channels=512),
)
