"""State dict to state dict: pure functions that report what became of every tensor."""

from . import graft_dr, graft_mobilenet, graft_recnet, graft_swrn  # noqa: F401  (register their rules)
from .convert import convert
from .fold import Folding, fold
from .graft import graft, register_graft
from .graft_shared import graft_shared
from .initialize import GraftInit
from .report import Report, TransferError

__all__ = [
    'Folding',
    'GraftInit',
    'Report',
    'TransferError',
    'convert',
    'fold',
    'graft',
    'graft_shared',
    'register_graft',
]
