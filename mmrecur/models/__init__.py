"""Layers, backbones and losses.

Import the sub-packages by name: :mod:`~mmrecur.models.layers` needs PyTorch only, the
others need MMEngine and MMCV.
"""
