"""State dict to state dict: pure functions that report what became of every tensor."""

from . import graft_dr, graft_mobilenet  # noqa: F401  (register their rules)
from .convert import convert
from .graft import graft, register_graft
from .initialize import GraftInit
from .report import Report, TransferError

__all__ = ['GraftInit', 'Report', 'TransferError', 'convert', 'graft', 'register_graft']
