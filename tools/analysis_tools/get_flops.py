"""Count the parameters and multiply-adds of a backbone, a classifier or a whole detector.

CONFIG is a config (a path, mmdet::PATH, mmpretrain::PATH, mmrecur::PATH) or a module: its registry
name with literal arguments, as in "mmrecur.RLAResNet(depth=50)", or its config, as in
"dict(type='mmrecur.RLAResNet', depth=50)". --cfg-options adds to either.

    python tools/analysis_tools/get_flops.py 'mmrecur.RLAResNet(depth=50)' --shape 224 224

A multiply-add is one multiplication together with one addition; G is 10^9 of them, Gi is 2^30. No
weights are loaded.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import re
import sys
from dataclasses import asdict
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import is_installed
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrecur.analysis.complexity import Complexity, image_inputs, measure
from mmrecur.apis.runner import ToolError, clean_errors, load_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module, see above')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width of the image, in this order (800 1280 for "1280x800"), or one '
        'number for both; default: 800 1280 for detectors, 224 224 for the rest',
    )
    parser.add_argument('--backbone-only', action='store_true', help='measure model.backbone only')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, or arguments of the module',
    )
    args = parser.parse_args(argv)
    if args.shape is not None and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'argument --shape: {args.shape} given; allowed: one or two positive numbers')
    return args


def parse_module(text: str) -> dict[str, Any] | None:
    """Reads ``text`` as the config of a module. None if it is a name of a config file."""
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
        raise ToolError(f'CONFIG {text!r} is no module with literal arguments: {error}') from error
    if 'type' not in cfg:
        raise ToolError(f'CONFIG {text!r} has no type')
    return cfg


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError('arguments need names')
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def without_pretrained(cfg: Any) -> Any:
    """Returns a copy of a model's config that asks for no weights."""
    if isinstance(cfg, dict):
        return {
            key: without_pretrained(value)
            for key, value in cfg.items()
            if key not in ('init_cfg', 'pretrained')
        }
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(without_pretrained(item) for item in cfg)
    return cfg


def read_model(args: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """Returns the config of the model to measure, and the scope to build it in."""
    module = parse_module(args.config)
    if module is not None:
        cfg = Config(module)
        cfg.merge_from_dict(args.cfg_options or {})
        scope = cfg.type.split('.')[0] if '.' in cfg.type else None
        return cfg.to_dict(), scope
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get('model') is None:
        raise ToolError(f'config {args.config!r} has no model')
    model = cfg.model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if args.backbone_only:
        if model.get('backbone') is None:
            raise ToolError(f'--backbone-only: the model of {args.config!r} has no backbone')
        model = model.backbone
    return model, cfg.get('default_scope')


def build(cfg: dict[str, Any], scope: str | None) -> nn.Module:
    """Builds a model with random weights."""
    if scope is not None:
        if not is_installed(scope) and scope != 'mmrecur':
            raise ToolError(f'the package {scope!r}, which the config needs, is not installed')
        importlib.import_module(f'{scope}.registry')
    torch.manual_seed(0)
    try:
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(ConfigDict(without_pretrained(cfg)))
    except (KeyError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else error
        raise ToolError(f'the model cannot be built: {message}') from error
    return revert_sync_batchnorm(model)


def print_table(title: str, measured: dict[str, Complexity]) -> None:
    """Prints the whole and its parts."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left', show_footer=False)
    table.add_column('module')
    for name in ('parameters', 'trainable', 'multiply-adds', 'G (10^9)', 'Gi (2^30)'):
        table.add_column(name, justify='right')
    parts = [(name, part) for name, part in measured.items() if name]
    for name, part in [*parts, ('total', measured[''])]:
        if name == 'total':
            table.add_section()
        work = part.multiply_adds
        cells = [f'{n:,}' for n in (part.parameters, part.trainable, work)]
        table.add_row(name, *cells, f'{work / 1e9:.2f}', f'{work / 2**30:.2f}')
    Console(width=max(100, Console().width)).print(table)


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # The libraries log to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        cfg, scope = read_model(args)
        model = build(cfg, scope)
        detector = type(model).__module__.startswith('mmdet.') and hasattr(model, 'bbox_head')
        detector = detector or hasattr(model, 'roi_head')
        shape = args.shape or ((800, 1280) if detector else (224, 224))
        shape = tuple(shape) * (2 // len(shape))
        inputs, arguments = image_inputs(model, shape, int(cfg.get('in_channels', 3)))
        measured = measure(model, inputs, arguments)
    whole = measured['']
    if args.json:
        result = dict(
            config=args.config,
            input_shape=list(inputs.shape),
            **asdict(whole),
            giga_multiply_adds=whole.multiply_adds / 1e9,
            gibi_multiply_adds=whole.multiply_adds / 2**30,
            modules={name: asdict(part) for name, part in measured.items() if name},
        )
        print(json.dumps(result, indent=2))
        return
    size = 'x'.join(map(str, inputs.shape))
    print_table(f'{args.config}, input {size} (N x C x H x W)', measured)


if __name__ == '__main__':
    with clean_errors():
        main()
