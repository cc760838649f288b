"""Layers, backbones and losses; importing it registers them."""

from . import backbones, losses
from .shortest_path import ShortestPathNet

__all__ = ['ShortestPathNet', 'backbones', 'losses']
