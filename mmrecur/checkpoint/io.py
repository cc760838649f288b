"""Checkpoint files: read as data, never as code; found again after a killed run.

:func:`load_checkpoint_file` reads one file. :func:`use_safe_loading` makes every way in which this
process loads a checkpoint go through the same rules, whichever library asks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

try:
    from numpy._core import multiarray
except ImportError:  # numpy 1
    from numpy.core import multiarray

#: Schemes that MMEngine downloads over HTTP, and those whose clients load as they like.
_HTTP_SCHEMES = (
    'http://',
    'https://',
    'modelzoo://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
)
_REFUSED_SCHEMES = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


class CheckpointError(RuntimeError):
    """A checkpoint that cannot or must not be loaded; the message names the file and the reason."""


def _renamed(name: str, function: Callable) -> Callable:
    """Make ``function`` what the unpickler finds under ``name``; works in every torch from 2.4."""
    function.__module__, function.__name__ = name.rsplit('.', 1)
    function.__qualname__ = function.__name__
    return function


def _get_statistic(owner: Any, name: str) -> Callable:
    # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'). A general getattr
    # would open every namespace in reach, such as a function's builtins, to a crafted file.
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr {name}')
    return getattr(HistoryBuffer, name)


def _numpy_scalar(dtype: np.dtype, data: Any) -> Any:
    if dtype.hasobject:
        raise pickle.UnpicklingError('Unsupported global: GLOBAL numpy scalar of objects')
    return multiarray.scalar(dtype, data)


def _numpy_array(subtype: type, shape: tuple, kind: bytes) -> np.ndarray:
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {subtype}')
    return multiarray._reconstruct(subtype, shape, kind)


def _safe_globals() -> list[Any]:
    """What a checkpoint of MMEngine's runner holds besides tensors and plain Python types."""
    kinds = 'bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str'
    allowed = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, slice]
    allowed += sorted({type(np.dtype(kind)) for kind in kinds.split()}, key=str)
    allowed.append(_renamed('builtins.getattr', _get_statistic))
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2
        allowed.append(_renamed(f'{module}.scalar', lambda *args: _numpy_scalar(*args)))
        allowed.append(_renamed(f'{module}._reconstruct', lambda *args: _numpy_array(*args)))
    return allowed


_SAFE_GLOBALS = _safe_globals()


@contextlib.contextmanager
def _allowing_safe_globals() -> Iterator[None]:
    serialization = torch.serialization
    if not hasattr(serialization, 'safe_globals'):  # before torch 2.5 they can only be added
        if hasattr(serialization, 'add_safe_globals'):
            serialization.add_safe_globals(_SAFE_GLOBALS)
        yield
        return
    # The context forgets on leaving what it was given, so it gets only what is new.
    known = serialization.get_safe_globals()
    with serialization.safe_globals([item for item in _SAFE_GLOBALS if item not in known]):
        yield


def _reason(error: Exception) -> str:
    """Say what is wrong with a file that ``torch.load`` did not accept."""
    text = str(error).strip()
    asked = re.search(r'GLOBAL (\S+)|call reduce for unrecognized function (.+)', text)
    if asked or 'create new object for' in text:
        name = next(filter(None, asked.groups())).strip("`'.,") if asked else ''
        return (
            f'it carries code{f" ({name})" if name else ""}; loading it would run the code, so '
            'only tensors, plain Python values and types of MMEngine and NumPy are accepted'
        )
    first_line = text.splitlines()[0] if text else type(error).__name__
    return f'it is truncated, damaged or not a checkpoint ({first_line})'


def load_checkpoint_file(
    path: str | os.PathLike, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Read a checkpoint without running anything it carries.

    Args:
        path (str or PathLike): A local file, of the zip format of torch 1.6 or the one before.
        map_location (Any): As for :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: The checkpoint: a state dict, or what MMEngine's runner saved.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is truncated, damaged, no checkpoint, or carries code. Nothing has
            been executed then. The message names the file and the reason.

    Example:
        >>> checkpoint = load_checkpoint_file('work_dirs/demo/epoch_6.pth')  # doctest: +SKIP
        >>> checkpoint['meta']['epoch']  # doctest: +SKIP
        6
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist or is not a file')
    try:
        with _allowing_safe_globals():
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        OSError,
        MemoryError,
        OverflowError,
    ) as error:
        # Devices are the one thing to fail here that the file is not to blame for.
        if 'CUDA' in str(error):
            raise
        raise CheckpointError(f'checkpoint {str(path)!r} refused: {_reason(error)}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {str(path)!r} refused: it holds a {type(checkpoint).__name__}, not a dict'
        )
    return checkpoint


def load_checkpoint(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from a file or from whatever else MMEngine loads, as data only.

    Args:
        source (str): File, URL or name such as ``torchvision://resnet50``.
        map_location (Any): As for :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: See :func:`load_checkpoint_file`, whose errors are raised too.
    """
    if '://' not in source:
        return load_checkpoint_file(source, map_location)
    use_safe_loading()
    return CheckpointLoader.load_checkpoint(source, map_location)


def use_safe_loading() -> None:
    """Make this process load checkpoints as data only, from whichever library and scheme.

    Local files go through :func:`load_checkpoint_file`. For downloads, and for code that calls
    ``torch.load`` itself, PyTorch's ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` is set, which also overrules
    an explicit ``weights_only=False``; MMEngine's types are registered as safe. Petrel, S3 and Pavi
    paths are refused, because their loaders accept more.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_SAFE_GLOBALS)

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        return _without_config(load_checkpoint_file(filename, map_location))

    def load_from_refused(filename: str, map_location: Any = None) -> dict[str, Any]:
        raise CheckpointError(f'checkpoint {filename!r} refused: copy it to a local file first')

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(_REFUSED_SCHEMES, load_from_refused, force=True)
    for scheme in _HTTP_SCHEMES:
        loader = CheckpointLoader._schemes.get(scheme)
        if loader is not None and not hasattr(loader, 'refuses_code'):
            CheckpointLoader.register_scheme(scheme, _naming_errors(loader), force=True)


def _without_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    # When resuming, MMEngine runs this text, which MMCV's checkpoints have, as a program.
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


def _naming_errors(loader: Callable) -> Callable:
    def load_from_url(filename: str, map_location: Any = None) -> dict[str, Any]:
        try:
            return _without_config(loader(filename, map_location))
        except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
            raise CheckpointError(f'checkpoint {filename!r} refused: {_reason(error)}') from error

    load_from_url.refuses_code = True
    return load_from_url


def find_checkpoint_to_resume(work_dir: str | os.PathLike) -> Path | None:
    """Find where a run in ``work_dir`` got to.

    Args:
        work_dir (str or PathLike): Directory of the run.

    Returns:
        Path, optional: The file that ``last_checkpoint`` names, also if the directory has moved
            since. If that file is not there (a kill can fall between deleting an old checkpoint and
            naming the new one), the newest ``epoch_*.pth`` or ``iter_*.pth``. None if there is
            none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        name = pointer.read_text().strip()
        # the directory may have moved, or be a copy whose original is still there
        for named in (work_dir / Path(name).name, Path(name)):
            if name and named.is_file():
                return named
    saved = [
        path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)
    ]
    return max(saved, key=lambda path: path.stat().st_mtime_ns, default=None)
