"""Types that a checkpoint may contain besides tensors and plain Python values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmrecur.compat import torch_safe_names
from mmrecur.errors import CodeInCheckpointError

try:
    from numpy._core import multiarray
except ImportError:  # numpy 1
    from numpy.core import multiarray


def _renamed(name: str, function: Callable) -> Callable:
    """Rename a function so that the unpickler finds it under ``name``."""
    function.__module__, function.__name__ = name.rsplit('.', 1)
    function.__qualname__ = function.__name__
    return function


def _get_statistic(owner: Any, name: str) -> Callable:
    # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'). A general getattr would give
    # a crafted file access to namespaces such as a function's builtins.
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise CodeInCheckpointError(f'builtins.getattr of {name}')
    return getattr(HistoryBuffer, name)


def _numpy_scalar(dtype: np.dtype, data: Any) -> Any:
    if dtype.hasobject:
        raise CodeInCheckpointError('NumPy scalar of objects')
    return multiarray.scalar(dtype, data)


def _numpy_array(subtype: type, shape: tuple, kind: bytes) -> np.ndarray:
    if subtype is not np.ndarray:
        raise CodeInCheckpointError(f'NumPy array of type {subtype}')
    return multiarray._reconstruct(subtype, shape, kind)


def _safe_globals() -> list[Any]:
    """List the types in the checkpoints of MMEngine's runner."""
    kinds = 'bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str'
    allowed = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, slice]
    allowed += sorted({type(np.dtype(kind)) for kind in kinds.split()}, key=str)
    allowed.append(_renamed('builtins.getattr', _get_statistic))
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # numpy 1 and 2
        allowed.append(_renamed(f'{module}.scalar', lambda *args: _numpy_scalar(*args)))
        allowed.append(_renamed(f'{module}._reconstruct', lambda *args: _numpy_array(*args)))
    return allowed


def _name(item: Any) -> str:
    """Return the name under which the unpickler finds an allowed item."""
    return item[1] if isinstance(item, tuple) else f'{item.__module__}.{item.__qualname__}'


SAFE_GLOBALS = _safe_globals()
_SAFE_NAMES = frozenset(map(_name, SAFE_GLOBALS))


def allowed_names() -> set[str] | None:
    """Return the full names of all functions and classes that torch's unpickler may load; None if unknown."""
    names = torch_safe_names()
    if names is None:
        return None
    return names | _SAFE_NAMES | {_name(item) for item in torch.serialization.get_safe_globals()}


@contextlib.contextmanager
def only_safe_types() -> Iterator[None]:
    """Allow torch's unpickler the types of this module for the duration of a ``with`` block.

    MMEngine allows the real ``getattr`` and NumPy's own constructors while it loads. Within this context, the
    restricted functions of this module replace them. Other types that the process has allowed stay allowed.
    """
    before = torch.serialization.get_safe_globals()
    allowed = [item for item in before if _name(item) not in _SAFE_NAMES] + SAFE_GLOBALS
    _replace_safe_globals(before, allowed)
    try:
        yield
    finally:
        _replace_safe_globals(allowed, before)


def _replace_safe_globals(old: list[Any], new: list[Any]) -> None:
    if set(old) != set(new):
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(new)
