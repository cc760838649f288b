"""Plot the effective receptive field of each output segment of the CRC layers in a RecNet.

CONFIG is a config or a module, as in "mmrecur.RecNet(arch='60-1280')". CHECKPOINT holds its weights; without
it they are random. The tool prints the radius of the receptive field for every CRC layer, or for those whose
names match --layer. The plot also shows the share of each input segment in each output segment, the imbalance
that Section 2.2 of the RecNet paper describes.

    python tools/analysis_tools/plot_receptive_field.py "mmrecur.RecNet(arch='60-1280')" \\
        --layer 'layer1.*' --out receptive_field.png
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import sys
from fnmatch import fnmatch

import torch
from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.effective_receptive_field import SegmentView, segment_view
from mmrecur.analysis.plots import plot_segment_views
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.figures import picture_path, save_figure
from mmrecur.errors import ToolError, TransferError
from mmrecur.models.layers import ChannelRecurrentConv


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module, see above')
    parser.add_argument('checkpoint', nargs='?', help='weights (default: random)')
    parser.add_argument(
        '--layer', default='*', help='shell pattern for the names of CRC layers (default: all)'
    )
    parser.add_argument('--out', type=picture_path, help='write the plot to this file: png, pdf or svg')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def measure_layers(args: argparse.Namespace) -> list[SegmentView]:
    """Build the model, load its weights and measure its CRC layers."""
    torch.manual_seed(0)
    model = build_model(*read_model(args.config, args.cfg_options))
    try:
        if args.checkpoint:
            model.load_state_dict(unwrap(load_checkpoint(args.checkpoint)))
        layers = {n: m for n, m in model.named_modules() if isinstance(m, ChannelRecurrentConv)}
        chosen = {n: m for n, m in layers.items() if fnmatch(n, args.layer)}
        if not chosen:
            raise ValueError(f'no CRC layer is named {args.layer!r}, allowed: {", ".join(layers) or "none"}')
        return [segment_view(layer, name=name) for name, layer in chosen.items()]
    except (RuntimeError, TransferError, ValueError) as error:
        raise ToolError(f'{args.config}: {error}') from error


def print_table(views: list[SegmentView]) -> None:
    """Print a table of the radii, with a column for each layer."""
    table = Table(
        title='Radius of the receptive field of each output segment, in pixels', box=box.SIMPLE_HEAD
    )
    table.add_column('segment')
    for view in views:
        table.add_column(view.name, justify='right')
    for i in range(max(len(view.radius) for view in views)):
        radii = (view.radius[i:] for view in views)
        table.add_row(str(i), *(f'{rest[0]:.2f}' if len(rest) else '' for rest in radii))
    Console(markup=False).print(table)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    # keep the log messages of the libraries out of the result on stdout
    with contextlib.redirect_stdout(sys.stderr):
        views = measure_layers(args)
        if args.out:
            save_figure(plot_segment_views(views), args.out)
    if args.json:
        result = [dict(layer=v.name, influence=v.influence.tolist(), radius=v.radius.tolist()) for v in views]
        print(json.dumps(result, indent=2))
    else:
        print_table(views)
    if args.out:
        print(f'Wrote {args.out}', file=sys.stderr)


if __name__ == '__main__':
    with clean_errors():
        main()
