"""State dict to state dict: pure functions that report what became of every tensor."""

from mmrecur.checkpoint.converters.convert import convert
from mmrecur.checkpoint.grafts.graft import graft, register_graft
from mmrecur.checkpoint.grafts.init import GraftInit
from mmrecur.checkpoint.grafts.resnet_shared import graft_shared
from mmrecur.checkpoint.tie import TiedLayers, fold
from mmrecur.checkpoint.transfer import Report

__all__ = [
    'TiedLayers',
    'GraftInit',
    'Report',
    'convert',
    'fold',
    'graft',
    'graft_shared',
    'register_graft',
]
