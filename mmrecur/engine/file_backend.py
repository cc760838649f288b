"""Checkpoints that a kill and a full disk leave whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend

from mmrecur.errors import FileWriteError

#: Errors that say that there is no room: on the disk, in the quota, for one file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_CHUNK = 1 << 24


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, made to survive a kill at any moment.

    A file is written under another name, read back from the disk and renamed, so that one of the
    right name is complete. MMEngine deletes an outdated checkpoint before it writes the next; here
    the deletion waits until the next one has been read back, so that there is always one to resume.
    """

    # On the class: MMEngine makes a new backend for each file it writes.
    _outdated: ClassVar[set[Path]] = set()

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes.

        Args:
            obj (bytes): Content.
            filepath (str or PathLike): File; its directory is made if needed.

        Raises:
            FileWriteError: If there is no room for it, or the disk does not give back what was written.
                A file of this name from before stays.
        """
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        # with the process: another one may write into the same directory
        partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
        try:
            _write(partial, obj)
            if (position := _first_difference(partial, obj)) is not None:
                raise FileWriteError(
                    f'{str(target)!r} was not read back as it was written, from byte {position} on; '
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


def remove_partial_files(directory: str | os.PathLike) -> None:
    """Remove what killed runs left of checkpoints that they were writing.

    Args:
        directory (str or PathLike): A directory in which no run is at work.
    """
    for path in Path(directory).glob('.*.pth.*partial'):
        path.unlink(missing_ok=True)


def explain_no_room(
    error: OSError, path: str | os.PathLike | None = None, size: int | None = None
) -> str | None:
    """Say what to do about a full disk.

    Args:
        error (OSError): What the system said.
        path (str or PathLike, optional): The file that was to be written. Defaults to that of the error.
        size (int, optional): Bytes that it needs. Defaults to None, unknown.

    Returns:
        str, optional: A sentence that names the file; None for errors of another kind.
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
    return f'{text} ({", ".join(needed)}); make room, then go on with --resume' if needed else text


def _write(path: Path, content: bytes) -> None:
    """Write a file and see to it that it is on the disk."""
    with open(path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):
            # so that it is read back from there, not from the memory that caches it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _first_difference(path: Path, content: bytes) -> int | None:
    """Return the position of the part of a file that is not what it should be; None if all is well."""
    expected = memoryview(content)
    position = 0
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            if chunk != expected[position : position + len(chunk)]:
                return position
            position += len(chunk)
    return None if position == len(content) else position
