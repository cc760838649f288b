"""Count the parameters and multiply-adds of a backbone, a classifier or a whole detector.

CONFIG is a config (a path, mmdet::PATH, mmpretrain::PATH, mmrecur::PATH) or a module: its registry
name with literal arguments, as in "mmrecur.RLAResNet(depth=50)", or its config, as in
"dict(type='mmrecur.RLAResNet', depth=50)". --cfg-options changes
either of them.

    python tools/analysis_tools/get_flops.py 'mmrecur.RLAResNet(depth=50)' --shape 224 224

A multiply-add is one multiplication and one addition. G is 10^9, Gi is 2^30. No weights are loaded.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import sys
from dataclasses import asdict

from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.complexity import Complexity, image_inputs, is_detector, measure
from mmrecur.apis.runner import clean_errors
from mmrecur.apis.specs import build_model, read_model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module; see above')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width of the image, in this order, or one number for both; '
        'default: 800 1280 for detectors, 224 224 for other models',
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


def print_table(title: str, measured: dict[str, Complexity]) -> None:
    """Print the parts of a model and their total."""
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
    Console(width=max(100, Console().width), markup=False).print(table)


def _in_channels(cfg: dict) -> int:
    own = cfg.get('in_channels')
    return int((cfg.get('backbone') or {}).get('in_channels', 3) if own is None else own)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    # The libraries log to stdout, which is reserved for the result.
    with contextlib.redirect_stdout(sys.stderr):
        cfg, scope = read_model(args.config, args.cfg_options, args.backbone_only)
        model = build_model(cfg, scope)
        shape = args.shape or ((800, 1280) if is_detector(model) else (224, 224))
        shape = tuple(shape) * (2 // len(shape))
        inputs, arguments = image_inputs(model, shape, _in_channels(cfg))
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
