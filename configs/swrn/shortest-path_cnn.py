"""Section 4.4 of the paper: the plain CNN."""

_base_ = [
    '../_base_/datasets/shortest_paths.py',
    '../_base_/schedules/shortest_paths_5x50e.py',
    '../_base_/mmrecur.py',
]
default_scope = 'mmengine'

model = dict(type='mmrecur.ShortestPathNet')
custom_hooks = [dict(type='mmrecur.CurriculumHook', epochs_per_phase=50)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=1, save_param_scheduler=False),
)
randomness = dict(seed=0)
