"""Verification of the checksums in checkpoint files."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from typing import IO

_ZIP_START = b'PK\x03\x04'


def is_zip(file: IO[bytes]) -> bool:
    """Return whether a file is in the zip format.

    Args:
        file (file object): A file open for reading. Its position is restored.

    Returns:
        bool: Whether it begins like a zip file.
    """
    position = file.tell()
    try:
        return file.read(len(_ZIP_START)) == _ZIP_START
    finally:
        file.seek(position)


def find_damage(file: str | os.PathLike | IO[bytes]) -> str | None:
    """Verify the checksums of a checkpoint.

    :func:`torch.save` writes a zip file with a checksum for each tensor, which :func:`torch.load` ignores.

    Args:
        file (str, PathLike or file object): The checkpoint. The position of a file object is restored.

    Returns:
        str, optional: Description of the damage; None if the file is intact or has no checksums. Files in the
        format before torch 1.6, and files written after ``torch.serialization.set_crc32_options(False)``,
        have none.

    Raises:
        OSError: If the file cannot be read.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return find_damage(opened)
    if not is_zip(file):
        return None
    position = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            # without checksums, torch writes zeros
            if not any(member.CRC for member in archive.infolist()):
                return None
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, struct.error, zlib.error) as error:
        return str(error) or type(error).__name__
    except (NotImplementedError, RuntimeError, ValueError, IndexError) as error:
        # a damaged directory may ask for a compression or an encryption that is not supported
        return f'its directory is damaged: {error}'
    except OSError as error:
        if error.errno != errno.EINVAL:  # a position outside the file
            raise
        return f'its directory is damaged: {error}'
    finally:
        file.seek(position)
    return None if damaged is None else f'the checksum of {damaged} does not match'
