"""Exceptions that this package raises besides Python's own."""

from __future__ import annotations


class MMRecurError(Exception):
    """Base class of this package's exceptions."""


class ToolError(MMRecurError, RuntimeError):
    """The user's input is at fault; the message says what to change."""


class WorkDirInUseError(MMRecurError, RuntimeError):
    """Another training is running in the work directory; the message names it."""


class TransferError(MMRecurError, ValueError):
    """A checkpoint's keys or shapes do not fit the model."""


class CheckpointError(MMRecurError, RuntimeError):
    """A checkpoint file cannot or must not be loaded; the message names the file and the reason."""


class CodeInCheckpointError(CheckpointError):
    """A checkpoint file refers to code that loading it would run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint file is truncated or damaged, or is not a checkpoint."""


class FileWriteError(CheckpointError, OSError):
    """A file could not be written; no part of it remains, and the message gives the reason."""
