"""Save the state of a recovery, so that it continues after an interruption."""

from __future__ import annotations

import glob
import io
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import CheckpointError

#: Seconds between two saves.
INTERVAL = 30.0
#: What the parts of an identity stand for.
_NAMES = {
    'teacher': 'teacher',
    'student': 'network as student',
    'images': 'choice of images',
    'batch_size': 'batch size',
    'batches': 'number of batches',
}


class RecoveryState:
    """A file with the state of a recovery.

    Args:
        path (str or Path, optional): The file. None saves nothing.
        settings (Mapping): What the recovery depends on, as numbers, strings and lists. A file with other
            settings belongs to another recovery.
        identity (Mapping): Further values of this kind, which mean nothing to a reader, such as checksums.
    """

    def __init__(
        self, path: str | Path | None, settings: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.identity = dict(settings), dict(identity)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none.

        Raises:
            CheckpointError: If the file is damaged, no state of a recovery, or that of another one.
        """
        if self.path is None:
            return None
        for partial in self.path.parent.glob(f'.{glob.escape(self.path.name)}.*.partial'):
            partial.unlink(missing_ok=True)  # a process was killed while it wrote the state
        if not self.path.is_file():
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
        identity = found.get('identity', {})
        names = sorted(identity.keys() | self.identity.keys())
        if other := [name for name in names if identity.get(name) != self.identity.get(name)]:
            raise CheckpointError(
                f'checkpoint {str(self.path)!r} belongs to a recovery with another {_NAMES[other[0]]}; '
                'delete the file to start again'
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
        torch.save(dict(settings=self.settings, identity=self.identity, state=dict(state)), buffer)
        AtomicLocalBackend().put(buffer.getvalue(), self.path)
        self._saved = time.monotonic()


def weights_checksum(module: nn.Module) -> int:
    """Return a checksum of the names and values of a network's weights."""
    checksum = 0
    for name, value in module.state_dict().items():
        checksum = zlib.crc32(name.encode(), checksum)
        if isinstance(value, torch.Tensor):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(raw.numpy(), checksum)
    return checksum


def layout_checksum(module: nn.Module) -> int:
    """Return a checksum of a network's layers and shapes, whatever its weights."""
    layers = re.sub(r'0x[0-9a-f]+', '', repr(module))  # addresses of functions
    return text_checksum(f'{layers}{[(name, p.shape) for name, p in module.named_parameters()]}')


def text_checksum(text: str) -> int:
    """Return a checksum of a text."""
    return zlib.crc32(text.encode())
