"""State dict to state dict: pure functions that report what became of every tensor."""

from .convert import convert
from .report import Report, TransferError

__all__ = ['Report', 'TransferError', 'convert']
