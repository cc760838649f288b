"""Models named on a command line."""

from __future__ import annotations

import ast

from mmengine.registry import MODELS
from torch import nn

import mmrecur.registry  # noqa: F401  (adds this package to MMEngine's registries)
from mmrecur.apis.runner import ToolError, load_config

ALLOWED = (
    "a config file, an 'mmdet::...' style name of one, or a registered backbone with its arguments "
    "such as 'mmrecur.RLAResNet(depth=50)' or 'mmpretrain.ResNet(depth=50)'"
)


def backbone_config(spec: str) -> dict:
    """Find the backbone a command line names.

    Args:
        spec (str): A config file, a name such as ``mmdet::retinanet/...py``, or a registered class with
            literal arguments such as ``mmrecur.RLAResNet(depth=50)``.

    Returns:
        dict: The backbone's config, its type with a scope.

    Raises:
        ValueError: If ``spec`` is none of these or the config has no backbone.
    """
    if spec.endswith('.py') or '::' in spec:
        try:
            config = load_config(spec)
        except ToolError as error:
            raise ValueError(f'model={spec!r} ({error}), allowed: {ALLOWED}') from error
        backbone = config.get('model', {}).get('backbone')
        if backbone is None:
            raise ValueError(f'model={spec!r} has no model.backbone, allowed: {ALLOWED}')
        backbone = backbone.to_dict()
        if '.' not in backbone['type']:
            backbone['type'] = f'{config.get("default_scope", "mmengine")}.{backbone["type"]}'
        return backbone
    try:
        call = ast.parse(spec, mode='eval').body
        if not isinstance(call, ast.Call):
            return dict(type=ast.unparse(call))
        if call.args:
            raise ValueError('arguments need names')
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return dict(type=ast.unparse(call.func), **arguments)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f'model={spec!r} ({error}), allowed: {ALLOWED}') from error


def build_backbone(spec: str) -> nn.Module:
    """Build the backbone that :func:`backbone_config` finds, with random weights.

    Args:
        spec (str): See :func:`backbone_config`.

    Returns:
        nn.Module: The backbone; nothing is downloaded.
    """
    return MODELS.build(backbone_config(spec))
