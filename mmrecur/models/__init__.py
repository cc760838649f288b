"""Layers, backbones and losses; importing it registers them."""

from . import backbones

__all__ = ['backbones']
