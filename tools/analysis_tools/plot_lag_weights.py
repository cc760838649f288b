"""Plot how much the layers of a network read of earlier ones, with an exponential fit.

CONFIG is a config or a module, as in "mmrecur.DenseNetBC(depth=100, share='lag')"; CHECKPOINT its weights.

For every dense block the L1 norm of the weights of the 1x1 convolutions is printed and drawn by lag
(how many layers back) or by ordinal number: Figure 2 of the RLA paper. Its R^2 say how nearly the decay is
exponential (Appendix A.2). For a plain DenseNet the norms are averages over the layers.

For every stage of an RLA network it is the norm of the composed kernels with which the state reads what
was aggregated 1, 2, ... updates ago: Equation 12, without the tanh. --with-norms counts in what the batch
norms of the updates multiply by.

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
from mmrecur.apis.runner import ToolError, clean_errors
from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint import TransferError
from mmrecur.checkpoint.io import load_checkpoint
from mmrecur.checkpoint.unwrap import unwrap
from mmrecur.engine.figures import picture_path, save_figure

#: What is printed of a fit.
FIT = ('scale', 'rate', 'r_squared')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config or module, see above')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument('--out', type=picture_path, help='write the plot to this file: png, pdf or svg')
    parser.add_argument(
        '--by', choices=AXES, help='what to average by; default: what the model shares by, else lag'
    )
    parser.add_argument(
        '--with-norms', action='store_true', help='of RLA networks: count the batch norms of the updates in'
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def read_weights(args: argparse.Namespace) -> list[LagWeights]:
    """Builds the model, loads its weights and measures them."""
    model = build_model(*read_model(args.config, args.cfg_options))
    try:
        model.load_state_dict(unwrap(load_checkpoint(args.checkpoint)))
        return lag_weights(model, args.by, args.with_norms)
    except (RuntimeError, TransferError, ValueError) as error:
        raise ToolError(f'{args.config} with {args.checkpoint}: {error}') from error


def print_table(title: str, blocks: list[LagWeights]) -> None:
    """Prints norms, fits and R^2, a block in a column."""
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
    """Runs the tool."""
    args = parse_args(argv)
    # The libraries log to stdout, which is for the result.
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
