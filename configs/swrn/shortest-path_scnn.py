_base_ = './shortest-path_cnn.py'

model = dict(num_templates=20)
custom_hooks = [
    dict(type='mmrecur.CurriculumHook', epochs_per_phase=50),
    dict(type='mmrecur.LayerSimilarityHook', interval=5),
]
