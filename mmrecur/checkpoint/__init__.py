"""State dict to state dict: pure functions that report what became of every tensor."""

from . import graft_mobilenet  # noqa: F401  (registers its rule)
from .convert import convert
from .graft import graft, register_graft
from .graft_shared import graft_shared
from .initialize import GraftInit
from .report import Report, TransferError

__all__ = ['GraftInit', 'Report', 'TransferError', 'convert', 'graft', 'graft_shared', 'register_graft']
