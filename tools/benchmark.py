"""Time a backbone against another: median ratio, spread, parameters, FLOPs, peak memory.

Both run interleaved in one process, so the ratio holds on a noisy machine where seconds do not.

Examples:
    python tools/benchmark.py backbone 'mmrecur.RLAResNet(depth=50)' \\
        --against 'mmpretrain.ResNet(depth=50, out_indices=(0, 1, 2, 3))' --deploy --shape 4 3 224 224
    python tools/benchmark.py backbone configs/rla/retinanet_rla-r50_fpn_1x_coco.py \\
        --against mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --train --shape 2 3 320 320
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import json
import logging
import platform
import sys

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmrecur.analysis import complexity
from mmrecur.analysis.benchmark import deployed, evaluation_call, measure, training_call
from mmrecur.apis.runner import clean_errors
from mmrecur.apis.specs import build_model, read_model


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    backbone = commands.add_parser('backbone', help='time a backbone alone')
    backbone.add_argument('model', help='config, or class with arguments')
    backbone.add_argument('--against', required=True, help='reference, given in the same way')
    backbone.add_argument('--deploy', action='store_true', help='inference form (BN folded) of both')
    backbone.add_argument('--train', action='store_true', help='time a training step')
    backbone.add_argument(
        '--shape', type=int, nargs=4, action='append', metavar=('N', 'C', 'H', 'W'),
        help='input shape; may be given more than once (default: 1 3 224 224)',
    )  # fmt: skip
    backbone.add_argument(
        '--memory-format', choices=('default', 'contiguous', 'channels_last'), default='default',
        help="layout of both models' weights and input; default: what each comes with",
    )  # fmt: skip
    backbone.add_argument('--amp', choices=('bf16', 'fp16'), help='run both under autocast')
    backbone.add_argument('--compile', action='store_true', help='torch.compile both')
    backbone.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda if there is a GPU, else cpu',
    )  # fmt: skip
    backbone.add_argument('--threads', type=int, help='CPU threads (default: all cores)')
    backbone.add_argument('--rounds', type=int, default=20, help='timed rounds (default: 20)')
    backbone.add_argument('--json', action='store_true', help='print JSON instead of a table')
    args = parser.parse_args()
    if args.deploy and args.train:
        parser.error('--deploy and --train exclude each other: an inference form is not trained')
    if args.rounds < 4:
        parser.error(f'--rounds {args.rounds}, allowed: at least 4')
    return args


def prepare(spec: str, args: argparse.Namespace) -> torch.nn.Module:
    """Build a model and bring it into the form to be timed."""
    model = build_model(*read_model(spec, backbone_only=True)).to(args.device)
    if args.deploy:
        model = deployed(model)
    if args.memory_format != 'default':
        model = model.to(memory_format=memory_format(args))
    return model


def memory_format(args: argparse.Namespace) -> torch.memory_format:
    """The layout the arguments ask for."""
    wanted = args.memory_format == 'channels_last'
    return torch.channels_last if wanted else torch.contiguous_format


def run(args: argparse.Namespace, shape: list[int]) -> list[dict]:
    """Time both models at one shape; rows for the reference and the model."""
    specs = [args.against, args.model]
    models = [prepare(spec, args) for spec in specs]
    x = torch.randn(*shape, device=args.device)
    if args.memory_format != 'default':
        x = x.contiguous(memory_format=memory_format(args))
    counts = [complexity.measure(model, x[:1])[''] for model in models]
    if args.compile:
        models = [torch.compile(model) for model in models]
    make = training_call if args.train else evaluation_call
    calls = [make(model, x) for model in models]
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(args.amp)
    device = torch.device(args.device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        timings = measure(calls, device, args.rounds)
    return [
        dict(
            model=spec,
            shape=shape,
            parameters=count.parameters,
            flops=count.multiply_adds,
            **vars(timing),
        )
        for spec, count, timing in zip(specs, counts, timings)
    ]


def show(rows: list[dict], args: argparse.Namespace) -> None:
    """Print the rows as a table."""
    what = 'training step' if args.train else 'inference form' if args.deploy else 'evaluation'
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else platform.processor()
    table = Table(title=f'{what}, {where or platform.machine()}, {torch.get_num_threads()} threads')
    for column in ('model', 'shape', 'ms', 'ratio', 'quartiles', 'parameters', 'GFLOPs', 'peak MiB'):
        table.add_column(column, justify='left' if column == 'model' else 'right', overflow='fold')
    for row in rows:
        table.add_row(
            row['model'],
            'x'.join(map(str, row['shape'])),
            f'{row["seconds"] * 1e3:.1f}',
            f'{row["ratio"]:.3f}',
            f'{row["low"]:.3f}-{row["high"]:.3f}',
            f'{row["parameters"]:,}',
            f'{row["flops"] / 1e9:.3f}',
            f'{row["peak_bytes"] / 2**20:.1f}',
        )
    console = Console(markup=False) if sys.stdout.isatty() else Console(width=140, markup=False)
    console.print(table)
    console.print('ratio: median over rounds to the first model in the same round. FLOPs are multiply-adds.')


def main() -> None:
    """Time the models and print the result."""
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [row for shape in args.shape or [[1, 3, 224, 224]] for row in run(args, shape)]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, args)


if __name__ == '__main__':
    with clean_errors():
        main()
