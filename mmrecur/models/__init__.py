"""Layers, backbones and losses; importing it registers them."""

from . import backbones, losses

__all__ = ['backbones', 'losses']
