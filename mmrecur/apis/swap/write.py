"""Write the files of a swap.

These are a config that inherits from the base and states only the differences and, if a trained checkpoint
was grafted, that checkpoint and the report of its graft.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrecur.apis.checkpoints import write_checkpoint
from mmrecur.apis.runner import (
    config_path,
)
from mmrecur.apis.swap.plan import Swap
from mmrecur.apis.swap.trial import Grafted
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import ToolError

#: Longest line that is written.
WIDTH = 100


class Verbatim(str):
    """An expression that is written into a config without quotes."""

    def __repr__(self) -> str:
        return str(self)


def write_swap(
    base: str,
    swap: Swap,
    out: Path,
    grafted: Grafted | None = None,
    checkpoint: str = '',
    dataset_meta: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Write the config of a swap and the grafted checkpoint, if there is one.

    Args:
        base (str): Name of the base, a path or ``package::path``.
        swap (Swap): The swap.
        out (Path): The config to write. The checkpoint goes to the same name with the suffix ``.pth``, its
            report to the same name with the suffix ``.report.json``.
        grafted (Grafted, optional): The grafted checkpoint. Defaults to None.
        checkpoint (str): Path of the checkpoint that was grafted. Defaults to ''.
        dataset_meta (dict, optional): Metadata of the data set, noted in the written checkpoint.
            Defaults to None.

    Returns:
        dict[str, str]: Paths of the written files, by kind.

    Raises:
        ToolError: If the written config would not be read back as planned; it is not written then.
    """
    header = f'{Path(config_path(base)).stem} with {swap.new} instead of {swap.old}.'
    text = inheriting_text(base, swap.base, swap.config, out, header)
    results = {'config': str(out)}
    if grafted is not None:
        weights = out.with_suffix('.pth')
        write_checkpoint(grafted.state, grafted.report, checkpoint, weights.resolve(), dataset_meta)
        results |= {'checkpoint': str(weights), 'report': str(out.with_suffix('.report.json'))}
    write_checked(text, out, swap.config)
    return results


def changes(base: Mapping[str, Any], new: Mapping[str, Any], place: str = '_base_') -> dict[str, Any]:
    """Return the keys that a config inheriting from ``base`` has to set to equal ``new``.

    Args:
        base (Mapping): The inherited config.
        new (Mapping): The config to reach.
        place (str): Expression for ``base`` in the inheriting config. Defaults to ``'_base_'``.

    Returns:
        dict: The keys that differ, with ``_delete_`` where inherited keys have to be removed. A list that
        extends the inherited list refers to it instead of repeating its items.
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
            # arguments of another class must not be inherited
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
    """Return readable Python source of a value.

    Args:
        value (Any): A literal, or nested dicts, lists and tuples of literals.
        indent (int): Indentation of the line on which the value begins. Defaults to 0.
        used (int): Number of characters already on that line. Defaults to 0.

    Returns:
        str: The source. A container that does not fit on the line has one item on each line.
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
    """Return the value of ``_base_`` in a config that inherits from another config.

    Args:
        name (str): Name of the inherited config, as for :func:`mmrecur.engine.configs.load_config`.
        out (Path): The inheriting config.

    Returns:
        str: ``package::path.py`` for a config of an installed package, otherwise a path relative to ``out``.
    """
    path = Path(config_path(name))
    package, separator, inside = name.partition('::')
    if separator and '.mim' in path.parts:
        return f'{package}::{inside if inside.endswith(".py") else inside + ".py"}'
    return Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()


def without_scopes(value: Any) -> Any:
    """Return a config without the keys ``_scope_`` that MMEngine adds to parts inherited from a package.

    Args:
        value (Any): A config or a part of a config.

    Returns:
        Any: The same as plain types.
    """
    if isinstance(value, Mapping):
        return {key: without_scopes(item) for key, item in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return type(value)(without_scopes(item) for item in value)
    return value


def _relative_paths(value: Any, folder: str) -> Any:
    """Make paths into the config's folder relative to it, so that the folder can be moved."""
    if isinstance(value, Mapping):
        return {key: _relative_paths(item, folder) for key, item in value.items()}
    if isinstance(value, str) and not isinstance(value, Verbatim) and value.startswith(folder):
        return '{{ fileDirname }}/' + value[len(folder) :]
    return value


def inheriting_text(base: str, old: Config, new: Config, out: Path, header: str) -> str:
    """Return the text of a config that inherits from ``base``.

    Args:
        base (str): Name of the inherited config, see :func:`base_reference`.
        old (Config): The inherited config.
        new (Config): The config that the text has to define.
        out (Path): Path that the text will be written to.
        header (str): Docstring of the config.

    Returns:
        str: The text.
    """
    wrapped = '\n'.join(textwrap.wrap(f'"""{header}"""', WIDTH))
    text = [f'{wrapped}\n', f'_base_ = {base_reference(base, out)!r}\n']
    found = changes(without_scopes(old.to_dict()), without_scopes(new.to_dict()))
    found = _relative_paths(found, f'{out.resolve().parent.as_posix()}/')
    for key, value in sorted(found.items(), key=lambda item: item[0] != 'custom_imports'):
        text.append(f'{key} = {source(value, used=len(key) + 3)}')
    return '\n'.join(text) + '\n'


def write_checked(text: str, out: Path, expected: Config) -> None:
    """Write a config atomically, after checking that it is read back as expected.

    Args:
        text (str): Text of the config.
        out (Path): Path to write to.
        expected (Config): The config that the text has to define.

    Raises:
        ToolError: If the text defines another config; it is not written then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # relative paths in the config start from its folder, so it is read back from there
    with tempfile.NamedTemporaryFile('w', dir=out.parent, prefix='.trial-', suffix='.py') as trial:
        trial.write(text)
        trial.flush()
        read = Config.fromfile(trial.name)
    if without_scopes(read.to_dict()) != without_scopes(expected.to_dict()):
        raise ToolError(f'the config for {out} would not be read back as planned; it was not written')
    AtomicLocalBackend().put_text(text, out)
