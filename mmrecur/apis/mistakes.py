"""Mistakes in a user's input, told apart from bugs and reported without a traceback.

An error counts as a mistake by its type and by where it was raised, never by its text. Everything else
keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import linecache
import re
import sys
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from types import TracebackType
from typing import Any
from urllib.error import URLError

from mmcv.transforms import LoadImageFromFile
from mmengine.registry import Registry, build_from_cfg

from mmrecur.engine import (
    explain_no_room,
)
from mmrecur.errors import MMRecurError

DATA_HINT = 'Does the config say where the data are (data_root, ann_file, data_prefix)?'

#: Code that reads data sets. Users' own data sets inherit from it, so it is on their stack too.
_DATA_CODE = (
    'mmcv.transforms',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmengine.dataset',
    'mmpretrain.datasets',
    'mmrecur.datasets',
    'torch.utils.data',
)
_NETWORK_CODE = ('urllib.request', 'http.client')
#: Exceptions that a constructor raises for values that it does not allow.
_REFUSALS = (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """End the program with a message instead of a traceback if the user's input is at fault."""
    try:
        yield
    except MMRecurError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt as interrupt:
        print('\n' + '\n'.join(['interrupted', *map(str, interrupt.args)]), file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(f'error: {message}')


def explain(error: Exception) -> str | None:
    """Explain which mistake in the user's input caused an exception of a library.

    Args:
        error (Exception): A caught exception, with its traceback.

    Returns:
        str, optional: A message. None if the exception may be a bug.
    """
    entries = list(traceback_entries(error.__traceback__))
    return _missing(error, entries) or _damaged_image(error, entries) or _config_mistake(error, entries)


def traceback_entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """Yield the entries of a traceback; the last one is the place where the error was raised."""
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _module(entry: TracebackType) -> str:
    return entry.tb_frame.f_globals.get('__name__', '')


def _raised_on_purpose(entry: TracebackType) -> bool:
    """Return whether a ``raise`` or ``assert`` statement raised the error, rather than a failed operation."""
    return entry.tb_frame.f_code.co_code[entry.tb_lasti] == dis.opmap['RAISE_VARARGS']


def _text(error: Exception, entry: TracebackType) -> str:
    # A data-loading worker sends its traceback as the message.
    lines = str(error.args[0] if error.args and isinstance(error, KeyError) else error).strip().splitlines()
    if lines and _module(entry) == 'torch._utils':
        return lines[-1].partition(': ')[2] or lines[-1]
    if lines:
        return '\n'.join(lines)
    return linecache.getline(entry.tb_frame.f_code.co_filename, entry.tb_lineno).strip()


# ---------------------------------------------------------------- files and downloads


def _missing(error: Exception, entries: list[TracebackType]) -> str | None:
    if not isinstance(error, OSError):
        return None
    if full_disk := explain_no_room(error):
        return full_disk
    text = _text(error, entries[-1])
    in_data = any(_module(entry).startswith(_DATA_CODE) for entry in entries)
    if isinstance(error, URLError) or any(_module(entry).startswith(_NETWORK_CODE) for entry in entries):
        what = f'the data of {_built_class(entries)}' if in_data else 'a file'
        remedy = (
            'Without network access, download the data elsewhere and set data_root to their folder.'
            if in_data
            else 'Without network access, download it elsewhere and give its path instead of the URL.'
        )
        return f'{what} could not be downloaded: {text}\n{remedy}'
    if in_data and isinstance(
        error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    ):
        return f'{text}\n{DATA_HINT}'
    return text if isinstance(error, FileNotFoundError) else None


def _damaged_image(error: Exception, entries: list[TracebackType]) -> str | None:
    if not isinstance(error, AssertionError):
        return None
    code = entries[-1].tb_frame.f_code
    place = code.co_filename, code.co_name
    if _module(entries[-1]) == 'torch._utils':
        frames = re.findall(r'^  File "(.+)", line \d+, in (\w+)$', str(error), re.MULTILINE)
        place = frames[-1] if frames else place
    loading = LoadImageFromFile.transform.__code__
    if place != (loading.co_filename, loading.co_name):
        return None
    return f'{_text(error, entries[-1])}; the file is damaged or not an image'


def _built_class(entries: list[TracebackType]) -> str:
    """Return the name of the class that was being built when the error was raised."""
    for entry in reversed(entries):
        if entry.tb_frame.f_code is build_from_cfg.__code__:
            return getattr(entry.tb_frame.f_locals.get('obj_cls'), '__name__', 'the config')
    return 'the config'


# ---------------------------------------------------------------- configs


def _config_mistake(error: Exception, entries: list[TracebackType]) -> str | None:
    builds = [i for i, entry in enumerate(entries) if entry.tb_frame.f_code is build_from_cfg.__code__]
    last = entries[-1]
    if not builds:
        # The runner checks which parts of a config go together.
        refused = isinstance(error, _REFUSALS) and _raised_on_purpose(last)
        if refused and _module(last) == 'mmengine.runner.runner':
            return f'the config cannot be run: {_text(error, last)}'
        return None
    values = entries[builds[-1]].tb_frame.f_locals
    if values.get('obj_cls') is None:
        return _unknown_type(values) if builds[-1] == len(entries) - 1 else None
    name = getattr(values['obj_cls'], '__name__', str(values['obj_cls']))
    # A call with wrong arguments fails in the caller.
    callers = ('build_from_cfg', 'get_instance', '__init__')
    if isinstance(error, TypeError) and last.tb_frame.f_code.co_name in callers:
        problem = argument_mistake(values['obj_cls'], values['args'])
        if problem is not None:
            return f'config: {name} {problem}'
    if isinstance(error, _REFUSALS) and _raised_on_purpose(last):
        place = f'{last.tb_frame.f_code.co_filename}, line {last.tb_lineno}'
        return f'config: {name} refuses its arguments: {_text(error, last)}\n(raised in {place})'
    return None


def _unknown_type(values: dict[str, Any]) -> str | None:
    registry, cfg = values.get('registry'), values.get('cfg')
    if not isinstance(registry, Registry):
        return None
    if 'obj_type' not in values:
        return f'config: allowed for a part of {registry.name}: a dict with "type"; given: {str(cfg)[:200]}'
    wanted = values['obj_type']
    if not isinstance(wanted, str):
        return f'config: type={wanted!r} is neither a name nor a class'
    return f'config: {unknown_type(registry, wanted)}'


def unknown_type(registry: Registry, wanted: str) -> str:
    """Report that a registry does not have a name.

    Args:
        registry (Registry): The registry.
        wanted (str): The name, with or without the scope of a library.

    Returns:
        str: A message that suggests similar registered names.
    """
    scope, _, bare = wanted.rpartition('.')
    known = {name: f'{scope}.{name}' if scope else name for name in _names(registry, scope)}
    near = [known[name] for name in get_close_matches(bare, known, n=3)]
    advice = f'did you mean {" or ".join(near)}?' if near else 'is its module in custom_imports?'
    return f'type={wanted!r} is not registered as a {registry.name}; {advice}'


def _names(registry: Registry, scope: str) -> set[str]:
    """Return the names in the registry of a scope. Without such a registry, return all known names."""
    root = registry
    names = set(root.module_dict)
    while root.parent is not None:
        root = root.parent
        names |= set(root.module_dict)
    child = root.children.get(scope)
    return set(child.module_dict) if child is not None else names


def argument_mistake(function: Any, given: Collection[str], later: Collection[str] = ()) -> str | None:
    """Compare the names of arguments with the parameters of a class or function.

    Args:
        function (callable): Class or function. If a constructor has ``**kwargs``, the parameters of the base
            class are accepted, too.
        given (Collection[str]): Names of the arguments.
        later (Collection[str]): Names of arguments that are added later. Defaults to ().

    Returns:
        str, optional: The first mistake. None if there is none.

    Example:
        >>> argument_mistake(contextlib.closing, ['thin'])
        "takes no argument 'thin'; did you mean thing?"
    """
    accepted = _accepted(function)
    for name in given:
        if accepted is not None and name not in accepted:
            near = get_close_matches(name, accepted, n=1)
            advice = f'did you mean {near[0]}?' if near else f'allowed: {", ".join(sorted(accepted))}'
            return f'takes no argument {name!r}; {advice}'
    with contextlib.suppress(ValueError):  # some builtins have no signature
        for name, parameter in inspect.signature(function).parameters.items():
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and name not in given and name not in later:
                return f'needs the argument {name!r}'
    return None


def _accepted(function: Any) -> set[str] | None:
    """Return the names of the accepted arguments, or None if every name is accepted."""
    if inspect.isclass(function):
        calls = [vars(cls)['__init__'] for cls in function.__mro__[:-1] if '__init__' in vars(cls)]
    else:
        calls = [function]
    accepted: set[str] = set()
    for call in calls:
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except ValueError:
            return None
        accepted |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:
        if not inspect.isclass(function):
            return None
    return accepted - {'self'}
