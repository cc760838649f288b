# Hooks for gates: add their objective to the losses and their rates to the log.
custom_hooks = [
    dict(type='mmrecur.AuxiliaryLossHook'),
    dict(type='mmrecur.GateRateHook', interval=100),
]
