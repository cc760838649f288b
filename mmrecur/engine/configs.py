"""Read configs of this package, mmdet and mmpretrain by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import is_installed

import mmrecur
from mmrecur.errors import ToolError


def config_path(name: str) -> str:
    """Return the path of a config.

    Args:
        name (str): See :func:`load_config`.

    Returns:
        str: Path of the file.

    Raises:
        ToolError: If it does not exist.
    """
    package, separator, inside = name.partition('::')
    if not separator:
        if not Path(name).is_file():
            raise ToolError(f'config {name!r} does not exist')
        return name
    if package == 'mmrecur':
        root = Path(mmrecur.__file__).parent
        # Installed packages have .mim; a source tree has configs beside the package.
        roots = [root / '.mim' / 'configs', root.parent / 'configs']
    elif is_installed(package):
        module = __import__(package)
        roots = [Path(module.__file__).parent / '.mim' / 'configs']
    else:
        raise ToolError(f'config {name!r}: the package {package!r} is not installed')
    for candidate in (inside, f'{inside}.py'):
        for root in roots:
            if (root / candidate).is_file():
                return str(root / candidate)
    raise ToolError(f'config {name!r} does not exist; looked in {", ".join(map(str, roots))}')


def load_config(name: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config.

    Args:
        name (str): Path of a config, or ``mmdet::...``, ``mmpretrain::...``, ``mmrecur::...``
            with a path below the configs of that package, with or without ``.py``.
        options (dict, optional): Values to replace, by dotted key. Defaults to None.

    Returns:
        Config: The config.

    Raises:
        ToolError: If the config does not exist or cannot be read.
    """
    path = config_path(name)
    try:
        cfg = Config.fromfile(path)
        if options:
            cfg.merge_from_dict(options)
    except Exception as error:  # A config is a program, which can raise anything.
        reason = f'{type(error).__name__}: {error}'
        raise ToolError(f'config {name!r} cannot be read: {reason}') from error
    return cfg
