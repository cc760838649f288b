"""Optimizer wrappers."""

from mmrecur.engine.optimizers.cpu_amp import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper']
