"""Conversion of state dicts by pure functions that report every tensor, and safe checkpoint files.

- ``converters/``: the authors' parameter names mapped to ours, one file for each source.
- ``grafts/``: the rules that put the weights of plain networks into backbones, one file for each family.
- ``transfer.py``: the mechanism and the report that conversions and grafts share.
- ``tie.py``: similar layers of a template bank tied into loops.
- ``io.py``: checkpoint files read as data, never as code.
"""

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
