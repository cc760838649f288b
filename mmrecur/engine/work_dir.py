"""Lock work directories, so that each is used by one training at a time."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from pathlib import Path

from mmrecur.engine.file_backend import remove_partial_files
from mmrecur.errors import WorkDirInUseError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_FILE_NAME = '.training.lock'

#: Environment variable of the rank by launcher, used before the process group exists.
_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')

# Descriptors of the locks of this process. The system closes them at its end.
_held: dict[Path, int] = {}


def lock_work_dir(work_dir: str | os.PathLike, launcher: str = 'none') -> None:
    """Lock a work directory until this process ends.

    The operating system locks the file ``.training.lock``, which names the process, and releases it when the
    process ends for any reason. In a distributed job, the first process takes the lock. It also removes
    incomplete checkpoints of killed runs. A second call for the same directory does nothing. If files cannot
    be locked (Windows, some network file systems), a warning is issued.

    Args:
        work_dir (str or PathLike): The directory, created if needed.
        launcher (str): Launcher of the job, as in MMEngine: 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to
            'none'.

    Raises:
        WorkDirInUseError: If another process has the lock.
    """
    if int(os.environ.get(_RANKS.get(launcher, ''), 0)) != 0:
        return
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir.resolve() / _FILE_NAME
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked = _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    holder = dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime('%Y-%m-%d %H:%M:%S'))
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    if not locked:
        os.close(descriptor)
        return
    if not _held and hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=_leave_to_parent)
    _held[path] = descriptor
    remove_partial_files(work_dir)


def _lock(descriptor: int, path: Path) -> bool:
    """Lock an open file; return False if files cannot be locked."""
    try:
        if fcntl is None:
            raise OSError('this operating system has no flock')
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)  # Give the holder time to write its process id.
        raise WorkDirInUseError(
            f'a training is running in {str(path.parent)!r}: {_holder(path)}; wait for it, end it, or choose '
            'another --work-dir'
        ) from None
    except OSError as error:
        warnings.warn(
            f'{str(path)!r} cannot be locked ({error}): make sure that no other training uses the directory',
            stacklevel=3,
        )
        return False
    return True


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    except (OSError, ValueError, TypeError, KeyError):
        return 'an unknown process'


def _leave_to_parent() -> None:
    # A child, such as a data loading worker, inherits the lock and may outlive its parent.
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()
