# What gates need: their objective is added to the losses, their rates to the log.
custom_hooks = [
    dict(type='mmrecur.AuxiliaryLossHook'),
    dict(type='mmrecur.GateRateHook', interval=100),
]
