_base_ = './shortest-path_scnn.py'

model = dict(loss_recurrence=dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01))
custom_hooks = [
    dict(type='mmrecur.AuxiliaryLossHook'),
    dict(type='mmrecur.CurriculumHook', epochs_per_phase=50),
    dict(type='mmrecur.LayerSimilarityHook', interval=5),
]
