"""Configs written as what they change in another."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrecur.apis.runner import config_path
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import ToolError

#: Longest line that is written.
WIDTH = 100


class Verbatim(str):
    """An expression that stands in a config as it is."""

    def __repr__(self) -> str:
        return str(self)


def changes(base: Mapping[str, Any], new: Mapping[str, Any], place: str = '_base_') -> dict[str, Any]:
    """What a config has to say to become ``new`` when it inherits from ``base``.

    Args:
        base (Mapping): The inherited config.
        new (Mapping): What it shall become.
        place (str): How the inherited one is called in a config. Defaults to ``'_base_'``.

    Returns:
        dict: The keys that differ; with ``_delete_`` where inherited ones have to go. A list that begins
        as the inherited one did refers to that.
    """
    if not base.keys() <= new.keys():
        return {'_delete_': True, **new}
    found: dict[str, Any] = {}
    for key, value in new.items():
        old = base.get(key)
        if key in base and old == value and type(old) is type(value):
            continue
        where = f'{place}.{key}'
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            # another class: what the old one was given says nothing about the new one
            other = value.get('type') != old.get('type')
            found[key] = {'_delete_': True, **value} if other else changes(old, value, where)
        elif isinstance(value, Mapping) and key in base and old is not None:
            found[key] = {'_delete_': True, **value}
        elif isinstance(value, list) and isinstance(old, list) and old and value[: len(old)] == old:
            found[key] = [Verbatim(f'*{where}'), *value[len(old) :]]
        else:
            found[key] = value
    return found


def source(value: Any, indent: int = 0, used: int = 0) -> str:
    """Python source of a value, readable by a person.

    Args:
        value (Any): Dicts, lists and literals.
        indent (int): Spaces in front of the line it begins on. Defaults to 0.
        used (int): Characters already on that line. Defaults to 0.

    Returns:
        str: The source; what does not fit into a line has an item a line.
    """
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) and key.isidentifier() for key in value)
        opening, closing = ('dict(', ')') if named else ('{', '}')
        items = [(f'{key}=' if named else f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = ('[', ']') if isinstance(value, list) else ('(', ')')
        items = [('', item) for item in value]
    else:
        return repr(value)
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    line = ', '.join(f'{name}{source(item)}' for name, item in items)
    line = f'{opening}{line}{comma}{closing}'
    if used + len(line) <= WIDTH and '\n' not in line and line.count('dict(') <= 2:
        return line
    pad = ' ' * (indent + 4)
    lines = [f'{pad}{name}{source(item, indent + 4, indent + 4 + len(name))},\n' for name, item in items]
    return f'{opening}\n{"".join(lines)}{" " * indent}{closing}'


def base_reference(name: str, out: Path) -> str:
    """What ``_base_`` is in a config that inherits from another.

    Args:
        name (str): A path or ``package::path``, as for :func:`mmrecur.apis.runner.load_config`.
        out (Path): The config to be written.

    Returns:
        str: ``package::path.py`` for an installed package, else the path relative to ``out``.
    """
    path = Path(config_path(name))
    package, separator, inside = name.partition('::')
    if separator and '.mim' in path.parts:
        return f'{package}::{inside if inside.endswith(".py") else inside + ".py"}'
    return Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()


def without_scopes(value: Any) -> Any:
    """A config as plain types without what MMEngine notes of the package that a part is inherited from.

    Args:
        value (Any): A config or a part of it.

    Returns:
        Any: The same without ``_scope_``.
    """
    if isinstance(value, Mapping):
        return {key: without_scopes(item) for key, item in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return type(value)(without_scopes(item) for item in value)
    return value


def _beside(value: Any, folder: str) -> Any:
    """Names files in the config's own folder by that, so that the folder can be moved."""
    if isinstance(value, Mapping):
        return {key: _beside(item, folder) for key, item in value.items()}
    if isinstance(value, str) and not isinstance(value, Verbatim) and value.startswith(folder):
        return '{{ fileDirname }}/' + value[len(folder) :]
    return value


def inheriting_text(base: str, old: Config, new: Config, out: Path, header: str) -> str:
    """Text of a config that inherits from ``base``.

    Args:
        base (str): Name of the base, see :func:`base_reference`.
        old (Config): The base.
        new (Config): What the written config shall be.
        out (Path): Where it will be.
        header (str): Docstring.

    Returns:
        str: The config.
    """
    wrapped = '\n'.join(textwrap.wrap(f'"""{header}"""', WIDTH))
    text = [f'{wrapped}\n', f'_base_ = {base_reference(base, out)!r}\n']
    found = changes(without_scopes(old.to_dict()), without_scopes(new.to_dict()))
    found = _beside(found, f'{out.resolve().parent.as_posix()}/')
    for key, value in sorted(found.items(), key=lambda item: item[0] != 'custom_imports'):
        text.append(f'{key} = {source(value, used=len(key) + 3)}')
    return '\n'.join(text) + '\n'


def write_checked(text: str, out: Path, expected: Config) -> None:
    """Write a config if it is read as expected.

    Args:
        text (str): The config.
        out (Path): Where to; it appears complete or not at all.
        expected (Config): What reading it has to give.

    Raises:
        ToolError: If it gives something else; nothing is written then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # a file in the same folder, which relative paths start from
    with tempfile.NamedTemporaryFile('w', dir=out.parent, prefix='.trial-', suffix='.py') as trial:
        trial.write(text)
        trial.flush()
        read = Config.fromfile(trial.name)
    if without_scopes(read.to_dict()) != without_scopes(expected.to_dict()):
        raise ToolError(f'the config for {out} would be read as another one: nothing written')
    AtomicLocalBackend().put_text(text, out)
