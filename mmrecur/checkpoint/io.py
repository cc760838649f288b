"""Checkpoint files: verified, read as data, never as code.

:func:`load_checkpoint_file` reads one file. :func:`use_safe_loading` makes every way in which this
process loads a checkpoint go through the same rules, whichever library asks.
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from mmrecur.checkpoint.checksums import find_damage
from mmrecur.checkpoint.safe_types import SAFE_GLOBALS, only_safe_types
from mmrecur.errors import CheckpointError, DamagedCheckpointError

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


_DAMAGED = 'it is truncated, damaged or not a checkpoint'


def _name_of(file: Any) -> str:
    """Return how to call what somebody loads, a path or an open file."""
    if isinstance(file, (str, os.PathLike)):
        return repr(os.fspath(file))
    name = getattr(file, 'name', None)
    return repr(name) if isinstance(name, str) else f'in a {type(file).__name__}'


def _explain(error: Exception) -> tuple[type[CheckpointError], str]:
    """Say why the unpickler refused a file, without PyTorch's advice to load it all the same."""
    text = str(error).strip()
    asked = re.search(
        r"GLOBAL (\S+)|call reduce for unrecognized function (.+)|allowlisted.*but got <class '(.+)'", text
    )
    if asked or 'create new object for' in text or 'whose module' in text:
        name = next(filter(None, asked.groups())).strip("`'.,") if asked else ''
        return CheckpointError, (
            f'it carries code{f" ({name})" if name else ""}; loading it would run the code, so '
            'only tensors, plain Python values and types of MMEngine and NumPy are accepted'
        )
    if 'TorchScript' in text:
        return CheckpointError, 'it is a TorchScript archive, not a state dict'
    detail = text.split('WeightsUnpickler error:')[-1].strip()
    first_line = detail.splitlines()[0] if detail else ''
    if not first_line or re.search('weights.only', first_line, re.IGNORECASE):
        first_line = type(error).__name__
    return DamagedCheckpointError, f'{_DAMAGED} ({first_line})'


def _load_as_data(
    load: Callable,
    file: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **pickle_load_args: Any,
) -> Any:
    """Call :func:`torch.load`, given as ``load``, so that it verifies its file and runs no code."""
    name = _name_of(file)
    if pickle_module not in (None, pickle):
        raise CheckpointError(
            f'checkpoint {name} refused: pickle_module={pickle_module!r} could run code that the file carries'
        )
    # a mapped file is read where it is used only, which may be a small part of it
    if not mmap and (damage := _damage(file)):
        raise DamagedCheckpointError(f'checkpoint {name} refused: {_DAMAGED} ({damage})')
    options = dict(pickle_load_args) if mmap is None else dict(pickle_load_args, mmap=mmap)
    try:
        with only_safe_types():
            return load(file, map_location, weights_only=True, **options)
    except Exception as error:
        advises = re.search('weights.only', str(error), re.IGNORECASE)
        if not advises and not isinstance(error, pickle.UnpicklingError):
            raise
        kind, reason = _explain(error)
    # Out of the handler: the traceback of a chained error would repeat PyTorch's advice.
    raise kind(f'checkpoint {name} refused: {reason}')


def _damage(file: Any) -> str | None:
    if isinstance(file, (str, os.PathLike)) or all(hasattr(file, name) for name in ('seek', 'tell', 'read')):
        return find_damage(file)
    return None


_torch_load = torch.load


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint after verifying it, without running anything it carries.

    Args:
        path (str or PathLike): A local file, of the zip format of torch 1.6 or the one before, which
            has no checksums.
        map_location (Any): As for :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: The checkpoint: a state dict, or what MMEngine's runner saved.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If it is truncated, damaged or no checkpoint.
        CheckpointError: If it carries code. Nothing has been executed then. The messages name the
            file and the reason.

    Example:
        >>> checkpoint = load_checkpoint_file('work_dirs/demo/epoch_6.pth')  # doctest: +SKIP
        >>> checkpoint['meta']['epoch']  # doctest: +SKIP
        6
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist or is not a file')
    try:
        checkpoint = _load_as_data(_torch_load, file, map_location)
    except CheckpointError:
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # a position out of the file
            raise DamagedCheckpointError(f'checkpoint {str(path)!r} refused: {_DAMAGED} ({error})') from error
        raise CheckpointError(f'checkpoint {str(path)!r} cannot be read: {error}') from error
    except (
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        MemoryError,
        OverflowError,
    ) as error:
        # Devices are the one thing to fail here that the file is not to blame for.
        if 'CUDA' in str(error):
            raise
        kind, reason = _explain(error)
        raise kind(f'checkpoint {str(path)!r} refused: {reason}') from error
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
    """Make this process verify checkpoints and load them as data only, whoever loads them.

    Importing :mod:`mmrecur.apis` calls this function. From then on:

    - :func:`torch.load` compares each file with its checksums, unless it maps it (``mmap=True``), and loads
      with ``weights_only=True`` whatever it is told. A file that is damaged or carries code is refused with
      a :class:`CheckpointError`. Types that were allowed by ``torch.serialization.add_safe_globals`` stay
      allowed. For code that got hold of the function before, PyTorch's ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` is
      set, which child processes inherit.
    - MMEngine's loaders, and so those of mmdet and mmpretrain, do the same. They leave out the config in
      the ``meta`` of MMCV's checkpoints, which MMEngine would run as a program. Petrel, S3 and Pavi paths
      are refused, because their clients load as they like.
    - MMEngine's inferencers take no config out of a checkpoint, since a config is a program, too.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(SAFE_GLOBALS)
    if not hasattr(torch.load, 'refuses_code'):
        torch.load = torch.serialization.load = _refusing_code(torch.load)
    _guard_mmengine()


def _refusing_code(load: Callable) -> Callable:
    @functools.wraps(load)
    def load_as_data(f: Any, *args: Any, **kwargs: Any) -> Any:
        return _load_as_data(load, f, *args, **kwargs)

    load_as_data.refuses_code = True
    return load_as_data


def _guard_mmengine() -> None:
    from mmengine.infer.infer import BaseInferencer

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
    if not hasattr(BaseInferencer._init_model, 'refuses_code'):
        BaseInferencer._init_model = _needing_config(BaseInferencer._init_model)


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
        except CheckpointError as error:  # which names the file in the cache of downloads
            raise type(error)(f'download of {filename!r}: {error}') from None
        except (zipfile.BadZipFile, EOFError) as error:
            kind, reason = _explain(error)
            raise kind(f'checkpoint {filename!r} refused: {reason}') from error

    load_from_url.refuses_code = True
    return load_from_url


def _needing_config(init_model: Callable) -> Callable:
    @functools.wraps(init_model)
    def init_model_from_config(self: Any, cfg: Any, weights: str | None, *args: Any, **kwargs: Any) -> Any:
        if not cfg:
            raise CheckpointError(
                f'the config in checkpoint {weights!r} is not used, because a config can run any code; '
                f'give one that you trust: {type(self).__name__}(model=CONFIG, weights=...)'
            )
        return init_model(self, cfg, weights, *args, **kwargs)

    init_model_from_config.refuses_code = True
    return init_model_from_config
