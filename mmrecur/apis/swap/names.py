"""Find a backbone of this package by a name that its class declares."""

from __future__ import annotations

import difflib
import inspect
from fnmatch import fnmatch
from typing import Any

from mmengine.registry import DefaultScope

from mmrecur.apis.specs import parse_module
from mmrecur.errors import ToolError
from mmrecur.models.backbones import Backbone
from mmrecur.registry import MODELS


def _families() -> list[type[Backbone]]:
    MODELS.import_from_location()
    return sorted(
        (c for c in set(MODELS.module_dict.values()) if inspect.isclass(c) and issubclass(c, Backbone)),
        key=lambda c: c.__name__,
    )


def _named() -> dict[str, tuple[type[Backbone], dict[str, Any]]]:
    found: dict[str, tuple[type[Backbone], dict[str, Any]]] = {}
    for family in _families():
        for name, args in vars(family).get('architectures', {}).items():
            if name in found:
                raise RuntimeError(f'{found[name][0].__name__} and {family.__name__} both declare {name!r}')
            found[name] = (family, args)
    return found


def list_backbones(pattern: str = '*') -> list[str]:
    """List the names that :func:`mmrecur.apis.swap_backbone` accepts.

    Args:
        pattern (str): Shell pattern or part of a name. Defaults to ``'*'``.

    Returns:
        list[str]: Names in alphabetical order. A name without a depth, such as ``'rla-resnet'``, keeps the
        depth of the backbone that is replaced.

    Example:
        >>> from mmrecur.apis import list_backbones
        >>> list_backbones('rla-eca-*')
        ['rla-eca-resnet', 'rla-eca-resnet101', 'rla-eca-resnet152', 'rla-eca-resnet50']
    """
    if not any(character in pattern for character in '*?['):
        pattern = f'*{pattern}*'
    return sorted(name for name in _named() if fnmatch(name, pattern))


def find_backbone(name: str | dict[str, Any]) -> tuple[type[Backbone], dict[str, Any]]:
    """Return the class and the arguments of a backbone.

    Args:
        name (str or dict): A name from :func:`list_backbones`, a module with arguments, such as
            ``"mmrecur.RLAResNet(depth=50)"``, or the config of a module.

    Returns:
        tuple[type, dict]: The class, and the arguments that the name fixes.

    Raises:
        ToolError: If there is no such backbone; the message lists similar names.
    """
    named = _named()
    if isinstance(name, str) and name in named:
        family, args = named[name]
        return family, dict(args)
    module = dict(name) if isinstance(name, dict) else parse_module(name)
    if module is None or module.keys() == {'type'} and '.' not in str(module['type']):
        near = difflib.get_close_matches(str(name), named, n=4, cutoff=0.5) or sorted(named)
        raise ToolError(
            f'backbone {name!r}; allowed: {", ".join(near)}{", ..." if len(near) < len(named) else ""}, or a '
            'module such as "mmrecur.RLAResNet(depth=50)"'
        )
    kind = module.pop('type', None)
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmrecur'):
            kind = MODELS.get(kind)
    if kind not in _families():
        names = ', '.join(f'mmrecur.{family.__name__}' for family in _families())
        raise ToolError(f'backbone {name!r} is not from this package; allowed: {names}, or a name')
    return kind, module


def signature(family: type[Backbone]) -> dict[str, Any]:
    """Return the arguments of a backbone class.

    Args:
        family (type): The class.

    Returns:
        dict[str, Any]: Argument name -> default, ``inspect.Parameter.empty`` for a required argument.
    """
    parameters = list(inspect.signature(family.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}
