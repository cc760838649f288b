"""Conversion of state dicts by pure functions that report every tensor, and safe checkpoint files."""

from mmrecur.checkpoint.converters.convert import convert
from mmrecur.checkpoint.grafts.graft import graft, register_graft
from mmrecur.checkpoint.grafts.graft_init import GraftInit
from mmrecur.checkpoint.tie import TiedLayers, tie_layers
from mmrecur.checkpoint.transfer import Report

__all__ = [
    'GraftInit',
    'Report',
    'TiedLayers',
    'convert',
    'graft',
    'register_graft',
    'tie_layers',
]
