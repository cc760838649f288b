_base_ = './r-resnet53-shared_4xb64_in1k.py'

# Figure 6: the naive network, which diverges from 0.1, starts from a smaller learning rate.
optim_wrapper = dict(optimizer=dict(lr=0.01))
