"""Checkpoint files, verified and read as data, never as code.

:func:`load_checkpoint_file` reads one file. :func:`use_safe_loading` applies the same rules to all libraries
in the process.
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from mmrecur.checkpoint.checksums import find_damage
from mmrecur.checkpoint.pickle_scan import forbidden_global, is_torchscript
from mmrecur.checkpoint.safe_types import SAFE_GLOBALS, only_safe_types
from mmrecur.errors import CheckpointError, CodeInCheckpointError, DamagedCheckpointError

#: Schemes that MMEngine downloads over HTTP.
_HTTP_SCHEMES = (
    'http://',
    'https://',
    'modelzoo://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
)
#: Schemes whose clients do not load through torch.load.
_REFUSED_SCHEMES = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


def _name_of(file: Any) -> str:
    """Return the name of a path or open file for messages."""
    if isinstance(file, (str, os.PathLike)):
        return repr(os.fspath(file))
    name = getattr(file, 'name', None)
    return repr(name) if isinstance(name, str) else f'in a {type(file).__name__}'


def _explain(file: Any, start: int | None) -> CheckpointError:
    """Return the error for a file, read from position ``start``, that torch's unpickler has refused."""
    name = _name_of(file)
    if start is not None:
        file.seek(start)
    forbidden = forbidden_global(file) if _is_readable(file) else None
    return _damaged(name) if forbidden is None else _contains_code(name, forbidden)


def _contains_code(name: str, forbidden: str) -> CodeInCheckpointError:
    return CodeInCheckpointError(
        f'checkpoint {name} refused: it carries code ({forbidden}); loading it would run the code, so only '
        'tensors, plain Python values and types of MMEngine and NumPy are accepted'
    )


def _damaged(name: str, detail: str | Exception = '') -> DamagedCheckpointError:
    if isinstance(detail, Exception):
        detail = (str(detail).strip().splitlines() or [type(detail).__name__])[0]
    reason = f' ({detail})' if detail else ''
    return DamagedCheckpointError(
        f'checkpoint {name} refused: it is truncated, damaged or not a checkpoint{reason}'
    )


def _is_readable(file: Any) -> bool:
    is_path = isinstance(file, (str, os.PathLike))
    return is_path or all(hasattr(file, name) for name in ('seek', 'tell', 'read'))


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
    """Call ``load``, which is :func:`torch.load`, so that it verifies its file and runs no code."""
    name = _name_of(file)
    if pickle_module not in (None, pickle):
        raise CheckpointError(
            f'checkpoint {name} refused: pickle_module={pickle_module!r} could run code in the file'
        )
    if _is_readable(file):
        # mapping avoids reading the whole file, so its checksums are not verified
        if not mmap and (damage := find_damage(file)):
            raise _damaged(name, damage)
        if is_torchscript(file):
            raise CheckpointError(f'checkpoint {name} refused: it is a TorchScript archive, not a state dict')
    refusal: CheckpointError
    start = file.tell() if hasattr(file, 'tell') else None
    options = dict(pickle_load_args) if mmap is None else dict(pickle_load_args, mmap=mmap)
    try:
        with only_safe_types():
            return load(file, map_location, weights_only=True, **options)
    except CodeInCheckpointError as error:
        refusal = _contains_code(name, str(error))
    except pickle.UnpicklingError:
        refusal = _explain(file, start)
    # raised outside the handler, because a chained traceback would show PyTorch's advice to load unsafely
    raise refusal


_torch_load = torch.load


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = 'cpu') -> dict[str, Any]:
    """Verify a checkpoint and read it as data.

    Args:
        path (str or PathLike): A local file in torch's zip format, or in the format before torch 1.6, which
            has no checksums.
        map_location (Any): As for :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: The checkpoint: a state dict, or a dict saved by MMEngine's runner.

    Raises:
        FileNotFoundError: If there is no such file.
        CodeInCheckpointError: If the file contains code. The code has not been run.
        DamagedCheckpointError: If the file is truncated, damaged or not a checkpoint.
        CheckpointError: If the file cannot be read or does not hold a dict.

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
        if error.errno == errno.EINVAL:  # a position outside the file
            raise _damaged(repr(str(path)), error) from error
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
        if map_location != 'cpu':
            load_checkpoint_file(path)  # raises if the file is at fault, not the device
            raise
        raise _damaged(repr(str(path)), error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {str(path)!r} refused: it holds a {type(checkpoint).__name__}, not a dict'
        )
    return checkpoint


def load_checkpoint(source: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from a file, a URL or another source known to MMEngine, as data only.

    Args:
        source (str): File, URL or name such as ``torchvision://resnet50``.
        map_location (Any): As for :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError, CheckpointError: See :func:`load_checkpoint_file`.
    """
    if '://' not in source:
        return load_checkpoint_file(source, map_location)
    use_safe_loading()
    return CheckpointLoader.load_checkpoint(source, map_location)


def use_safe_loading() -> None:
    """Make every library in this process verify checkpoints and load them as data only.

    Importing :mod:`mmrecur.apis` calls this function. It has these effects:

    - :func:`torch.load` verifies the checksums of each file, except with ``mmap=True``, and always loads with
      ``weights_only=True``. A file that is damaged or contains code is refused with a
      :class:`CheckpointError`. Types allowed by ``torch.serialization.add_safe_globals`` stay allowed.
      PyTorch's variable ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` is set for child processes and for code that has
      imported the original function.
    - The loaders of MMEngine, which mmdet and mmpretrain use, do the same. They omit the config in the
      ``meta`` of MMCV's checkpoints, which MMEngine would run as a program. Paths of Petrel, S3 and Pavi are
      refused, because their clients do not load through :func:`torch.load`.
    - MMEngine's inferencers do not use a config in a checkpoint, because a config is a program, too.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
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
    # MMCV's checkpoints contain a config, which MMEngine runs as a program when it resumes
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


def _naming_errors(loader: Callable) -> Callable:
    def load_from_url(filename: str, map_location: Any = None) -> dict[str, Any]:
        try:
            return _without_config(loader(filename, map_location))
        except CheckpointError as error:  # it names the file in the download cache, not the URL
            raise type(error)(f'download of {filename!r}: {error}') from None
        except (zipfile.BadZipFile, EOFError) as error:
            raise _damaged(repr(filename), error) from error

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
