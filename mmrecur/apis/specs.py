"""Read and build models that are named on a command line.

A name stands for a config file or for a module:

- A config file is a path, ``mmdet::PATH``, ``mmpretrain::PATH`` or ``mmrecur::PATH``.
- A module is a registry name with literal arguments, such as ``mmrecur.RLAResNet(depth=50)``, or a config
  such as ``dict(type='mmrecur.RLAResNet', depth=50)``.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import is_installed
from torch import nn

import mmrecur.registry  # noqa: F401  (adds this package to MMEngine's registries)
from mmrecur.apis.runner import load_config
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError


def parse_module(text: str) -> dict[str, Any] | None:
    """Return the config of a module named by ``text``, or None if ``text`` names a config file."""
    text = text.strip()
    if not re.match(r'\{|[\w.]+\(|[A-Za-z_]\w*(\.\w+)?$', text) or text.endswith('.py'):
        return None
    try:
        node = ast.parse(text, mode='eval').body
        if isinstance(node, (ast.Name, ast.Attribute)):
            return dict(type=text)
        cfg = _literal(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) != 'dict':
            return dict(type=ast.unparse(node.func), **cfg)
    except (SyntaxError, ValueError) as error:
        raise ToolError(f'CONFIG {text!r} is not a module with literal arguments: {error}') from error
    if 'type' not in cfg:
        raise ToolError(f'CONFIG {text!r} has no type')
    return cfg


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError('positional arguments are not allowed')
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def without_pretrained(cfg: Any) -> Any:
    """Return a copy of a model's config that loads no weights."""
    if isinstance(cfg, dict):
        return {
            key: without_pretrained(value)
            for key, value in cfg.items()
            if key not in ('init_cfg', 'pretrained')
        }
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretrained(item) for item in cfg)
    return cfg


def read_model(
    name: str, options: dict[str, Any] | None = None, backbone_only: bool = False
) -> tuple[dict[str, Any], str | None]:
    """Return the config of a model that is named on a command line.

    Args:
        name (str): A config file or a module, see :mod:`mmrecur.apis.specs`.
        options (dict, optional): Changes to the config, or arguments of the module, by dotted key.
            Defaults to None.
        backbone_only (bool): Return only the backbone if ``name`` is a config file. Defaults to False.

    Returns:
        tuple[dict, str or None]: Config of the model, and the registry scope to build it in.

    Raises:
        ToolError: If ``name`` cannot be read, or if the config has no model or no backbone.
    """
    module = parse_module(name)
    if module is not None:
        cfg = Config(module)
        cfg.merge_from_dict(options or {})
        return cfg.to_dict(), cfg.type.split('.')[0] if '.' in cfg.type else None
    cfg = load_config(name, options)
    if cfg.get('model') is None:
        raise ToolError(f'config {name!r} has no model')
    model = cfg.model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if backbone_only:
        if model.get('backbone') is None:
            raise ToolError(f'the model of {name!r} has no backbone')
        model = model.backbone
    return model, cfg.get('default_scope')


@contextmanager
def registry_scope(scope: str | None) -> Iterator[None]:
    """Look up types without a prefix in the registries of a package.

    Args:
        scope (str, optional): Default scope of a config, such as ``'mmdet'``.

    Raises:
        ToolError: If the package is not installed.
    """
    if scope is not None:
        if not is_installed(scope) and scope != 'mmrecur':
            raise ToolError(f'the package {scope!r}, which the config needs, is not installed')
        importlib.import_module(f'{scope}.registry')
    with DefaultScope.overwrite_default_scope(scope):
        yield


def build_model(cfg: dict[str, Any], scope: str | None, seed: int = 0) -> nn.Module:
    """Build a model with random weights that depend on the seed only, and download nothing.

    Args:
        cfg (dict): Config of the model.
        scope (str, optional): Registry scope of types without a prefix.
        seed (int): Seed of the weights. Defaults to 0.

    Returns:
        nn.Module: The model, with batch norms in place of synchronized batch norms.

    Raises:
        ToolError: If the model cannot be built; the message gives the reason.
    """
    try:
        with registry_scope(scope), own_randomness(seed):
            model = MODELS.build(ConfigDict(without_pretrained(cfg)))
    except (KeyError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else error
        raise ToolError(f'the model cannot be built: {message}') from error
    return revert_sync_batchnorm(model)
