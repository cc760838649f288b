"""Checkpoints that a kill leaves whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, made to survive a kill at any moment.

    A file is written under another name and renamed when it is on the disk, so that one of the
    right name is complete. MMEngine deletes an outdated checkpoint before it writes the next; here
    the deletion waits until the next one is on the disk, so that there is always one to resume.
    """

    # On the class: MMEngine makes a new backend for each file it writes.
    _outdated: ClassVar[set[Path]] = set()

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes.

        Args:
            obj (bytes): Content.
            filepath (str or PathLike): File; its directory is made if needed.
        """
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'.{target.name}.partial')
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        self._outdated.discard(target.absolute())
        if target.suffix == '.pth':
            while self._outdated:
                self._outdated.pop().unlink(missing_ok=True)

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write text.

        Args:
            obj (str): Content.
            filepath (str or PathLike): File; its directory is made if needed.
            encoding (str): Defaults to 'utf-8'.
        """
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; a checkpoint as soon as the next one has been written.

        Args:
            filepath (str or PathLike): File.
        """
        path = Path(filepath)
        if path.suffix == '.pth' and path.is_file():
            self._outdated.add(path.absolute())
        else:
            super().remove(filepath)


def use_atomic_writes() -> None:
    """Make MMEngine write local files, checkpoints among them, through this backend."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
