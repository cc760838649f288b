"""Write files atomically, so that a kill or a full disk leaves no incomplete checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend

from mmrecur.errors import FileWriteError

#: Error numbers of a full disk, an exhausted quota and a file above the size limit.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_CHUNK = 1 << 24


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files with atomic writes.

    A file is written under a temporary name, read back from the disk and renamed, so a file with the final
    name is complete. MMEngine deletes an outdated checkpoint before it writes the next one; here it is
    deleted after the next one has been verified, so there is always a checkpoint to resume from.
    """

    # A class attribute, because MMEngine creates a new backend for each file.
    _outdated: ClassVar[set[Path]] = set()

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes.

        Args:
            obj (bytes): Content.
            filepath (str or PathLike): File. Its directory is created if needed.

        Raises:
            FileWriteError: If the disk is full, or if it returns other content than was written. An existing
                file of this name is kept.
        """
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The process id keeps processes apart that write into the same directory.
        partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
        try:
            _write(partial, obj)
            if (position := _first_difference(partial, obj)) is not None:
                raise FileWriteError(
                    f'{str(target)!r} differs from the written content from byte {position} on; '
                    'the disk or the memory of this machine may be failing'
                )
            os.replace(partial, target)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise FileWriteError(explain_no_room(error, target, len(obj))) from error
            raise
        finally:
            partial.unlink(missing_ok=True)
        self._outdated.discard(target.absolute())
        if target.suffix == '.pth':
            while self._outdated:
                self._outdated.pop().unlink(missing_ok=True)

    def put_text(self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8') -> None:
        """Write text.

        Args:
            obj (str): Content.
            filepath (str or PathLike): File. Its directory is created if needed.
            encoding (str): Encoding. Defaults to 'utf-8'.
        """
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Remove a file; remove a checkpoint only after the next one has been written.

        Args:
            filepath (str or PathLike): File.
        """
        path = Path(filepath)
        if path.suffix == '.pth' and path.is_file():
            self._outdated.add(path.absolute())
        else:
            super().remove(filepath)


def use_atomic_writes() -> None:
    """Make MMEngine write local files, including checkpoints, with :class:`AtomicLocalBackend`."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


def remove_partial_files(directory: str | os.PathLike) -> None:
    """Remove incomplete checkpoints of killed runs.

    Args:
        directory (str or PathLike): Directory that no run is using.
    """
    for path in Path(directory).glob('.*.pth.*partial'):
        path.unlink(missing_ok=True)


def explain_no_room(
    error: OSError, path: str | os.PathLike | None = None, size: int | None = None
) -> str | None:
    """Return advice on an error that was raised by a full disk.

    Args:
        error (OSError): The error.
        path (str or PathLike, optional): File that could not be written. Defaults to the one in the error.
        size (int, optional): Size of the file in bytes. Defaults to None, unknown.

    Returns:
        str or None: A message that names the file, or None for other errors.
    """
    if error.errno not in _NO_ROOM:
        return None
    path = error.filename if path is None else path
    text = f'cannot write {"a file" if path is None else repr(str(path))}: {error.strerror}'
    try:
        free = shutil.disk_usage(Path(path or '.').parent).free
    except OSError:
        free = None
    needed = [f'{size / 1e6:,.1f} MB are needed'] if size is not None else []
    if free is not None:
        needed.append(f'{free / 1e6:,.1f} MB are free on the disk')
    return f'{text} ({", ".join(needed)}); free some space, then continue with --resume' if needed else text


def _write(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with open(path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):
            # Drop the cache, so that the file is read back from the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _first_difference(path: Path, content: bytes) -> int | None:
    """Return the offset of the first chunk of a file that differs from its content, or None."""
    expected = memoryview(content)
    position = 0
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            if chunk != expected[position : position + len(chunk)]:
                return position
            position += len(chunk)
    return None if position == len(content) else position
