"""Layers, backbones and losses; importing it registers them."""

from mmrecur.models import backbones, losses
from mmrecur.models.shortest_path import ShortestPathNet

__all__ = ['ShortestPathNet', 'backbones', 'losses']
