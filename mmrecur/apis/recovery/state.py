"""Save the state of a recovery, so that it continues after an interruption."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import CheckpointError

#: Seconds between two saves.
INTERVAL = 30.0


class RecoveryState:
    """A file with the state of a recovery.

    Args:
        path (str or Path, optional): The file. None saves nothing.
        settings (Mapping): What the recovery depends on, as numbers, strings and lists. A file with other
            settings belongs to another recovery.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = dict(settings)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none.

        Raises:
            CheckpointError: If the file is damaged, no state of a recovery, or that of another one.
        """
        if self.path is None or not self.path.is_file():
            return None
        found = load_checkpoint_file(self.path)
        settings = found.get('settings')
        if not isinstance(settings, dict) or 'state' not in found:
            raise CheckpointError(f'checkpoint {str(self.path)!r} is not the state of a recovery')
        names = sorted(settings.keys() | self.settings.keys())
        if other := [name for name in names if settings.get(name) != self.settings.get(name)]:
            name = other[0]
            raise CheckpointError(
                f'checkpoint {str(self.path)!r} belongs to a recovery with {name}={settings.get(name)!r}, '
                f'this one has {self.settings.get(name)!r}; delete the file to start again'
            )
        return found['state']

    def is_due(self) -> bool:
        """Return whether the last save was long enough ago."""
        return self.path is not None and time.monotonic() - self._saved > INTERVAL

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state atomically.

        Args:
            state (Mapping): Tensors and plain types.
        """
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save(dict(settings=self.settings, state=dict(state)), buffer)
        AtomicLocalBackend().put(buffer.getvalue(), self.path)
        self._saved = time.monotonic()
