"""Plot how much the layers of a network read from earlier layers, with an exponential fit.

CONFIG is a config or a module, as in "mmrecur.DenseNetBC(depth=100, share='lag')"; CHECKPOINT holds its
weights.

For every dense block, the tool prints and draws the L1 norm of the weights of the 1x1 convolutions by lag
(number of layers back) or by ordinal number, as Figure 2 of the RLA paper. R^2 measures how close the decay
is to an exponential (Appendix A.2). In a plain DenseNet, the norms are averaged over the layers.

For every stage of an RLA network, it uses the norms of the composed kernels with which the state reads the
information aggregated 1, 2, ... updates ago (Equation 12, without the tanh). --with-norms includes the scales
of the batch norms of the updates.

    python tools/analysis_tools/plot_lag_weights.py \\
        configs/rla/lag-densenet-bc100_1xb128_cifar10.py CHECKPOINT --out lag_weights.png
    python tools/analysis_tools/plot_lag_weights.py \\
        configs/rla/rla-resnet50_4xb64_in1k.py CHECKPOINT --with-norms --out lag_weights.png
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import sys
from pathlib import Path

from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.lag_weights import AXES, LagWeights, lag_weights
from mmrecur.analysis.plots import plot_lag_weights
from mmrecur.apis.runner import (
    clean_errors,
)
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.figures import picture_path, save_figure
from mmrecur.errors import ToolError, TransferError

#: Attributes of a fit that are printed.
FIT = ('scale', 'rate', 'r_squared')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module; see above')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument('--out', type=picture_path, help='write the plot to this file: png, pdf or svg')
    parser.add_argument(
        '--by',
        choices=AXES,
        help='axis of the norms; default: the one along which the model shares weights, else lag',
    )
    parser.add_argument(
        '--with-norms', action='store_true', help='in RLA networks, include the scales of the batch norms'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def read_weights(args: argparse.Namespace) -> list[LagWeights]:
    """Build the model, load its weights and measure them."""
    model = build_model(*read_model(args.config, args.cfg_options))
    try:
        model.load_state_dict(unwrap(load_checkpoint(args.checkpoint)))
        return lag_weights(model, args.by, args.with_norms)
    except (RuntimeError, TransferError, ValueError) as error:
        raise ToolError(f'{args.config} with {args.checkpoint}: {error}') from error


def print_table(title: str, blocks: list[LagWeights]) -> None:
    """Print norms and fits, one column per block."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left')
    table.add_column(blocks[0].axis)
    for block in blocks:
        table.add_column(block.name, justify='right')
    for number in range(max(len(block.norms) for block in blocks)):
        norms = (block.norms[number:] for block in blocks)
        table.add_row(str(number + 1), *(f'{rest[0]:.2f}' if len(rest) else '' for rest in norms))
    table.add_section()
    for name in FIT:
        fits = (block.fit for block in blocks)
        table.add_row(name, *('' if fit is None else f'{getattr(fit, name):.3f}' for fit in fits))
    Console(markup=False).print(table)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    # The libraries log to stdout, which is reserved for the result.
    with contextlib.redirect_stdout(sys.stderr):
        blocks = read_weights(args)
        if args.out:
            title = Path(args.config).stem if args.config.endswith('.py') else args.config
            save_figure(plot_lag_weights(blocks, title), args.out)
    if args.json:
        result = [
            dict(
                block=b.name,
                by=b.axis,
                norms=b.norms.tolist(),
                **(dict.fromkeys(FIT) if b.fit is None else vars(b.fit)),
            )
            for b in blocks
        ]
        print(json.dumps(result, indent=2))
    else:
        print_table('L1 norm of the weights for a map, and its fit scale * exp(-rate * x)', blocks)
    if args.out:
        print(f'Wrote {args.out}', file=sys.stderr)


if __name__ == '__main__':
    with clean_errors():
        main()
