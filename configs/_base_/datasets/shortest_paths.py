# Grids of 32x32 points; five phases of 5,000 examples, the phase is set by CurriculumHook.
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmrecur.ShortestPaths', num_examples=5000, split='train'),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmrecur.ShortestPaths', num_examples=1000, split='val'),
)
# the hardest phase
test_dataloader = dict(
    val_dataloader, dataset=dict(type='mmrecur.ShortestPaths', num_examples=1000, split='test', phase=4)
)
val_evaluator = dict(type='mmrecur.PixelF1')
test_evaluator = val_evaluator
