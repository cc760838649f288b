"""Names of functions and classes in the pickles of a checkpoint, read without unpickling them."""

from __future__ import annotations

import _compat_pickle
import io
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from mmrecur.checkpoint.checksums import is_zip
from mmrecur.checkpoint.safe_types import allowed_names

#: A file in the format before torch 1.6 has five pickles. The fourth contains the object.
_MAX_PICKLES = 5
_UNREADABLE = (ValueError, LookupError, EOFError, OverflowError, MemoryError, struct.error)


def forbidden_global(file: str | os.PathLike | IO[bytes]) -> str | None:
    """Return the first function or class in a checkpoint that must not be loaded.

    Args:
        file (str, PathLike or file object): The checkpoint. The position of a file object is restored.

    Returns:
        str, optional: Its full name, such as ``'posix.system'``. None if the readable part of the file
        contains no such name, or if this version of torch does not tell which names it loads.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return forbidden_global(opened)
    allowed = allowed_names()
    if allowed is None:
        return None
    position = file.tell()
    try:
        stream = _pickle_in_zip(file) if is_zip(file) else file
        return next((name for name in _global_names(stream) if name not in allowed), None)
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return None
    finally:
        file.seek(position)


def is_torchscript(file: str | os.PathLike | IO[bytes]) -> bool:
    """Return whether a file is a TorchScript archive.

    Args:
        file (str, PathLike or file object): The file. The position of a file object is restored.

    Returns:
        bool: Whether it is.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return is_torchscript(opened)
    if not is_zip(file):
        return False
    position = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith('/constants.pkl') for name in archive.namelist())
    except (*_UNREADABLE, zipfile.BadZipFile, NotImplementedError, OSError):
        return False
    finally:
        file.seek(position)


def _pickle_in_zip(file: IO[bytes]) -> IO[bytes]:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        return io.BytesIO(archive.read(name))


def _global_names(stream: IO[bytes]) -> Iterator[str]:
    """Iterate over the full names that the pickles in a stream refer to."""
    for _ in range(_MAX_PICKLES):
        strings = ['', '']  # the last two strings, which STACK_GLOBAL takes as module and name
        for opcode, argument, _ in pickletools.genops(stream):
            if isinstance(argument, str) and opcode.name in ('GLOBAL', 'INST'):
                yield _full_name(*argument.split(' ', 1))
            elif opcode.name == 'STACK_GLOBAL':
                yield _full_name(*strings)
            elif isinstance(argument, str):
                strings = [strings[1], argument]


def _full_name(module: str, name: str) -> str:
    """Return the name in Python 3 of a function or class that a pickle may call by its Python 2 name."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f'{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}'
