"""Fold a network whose layers share weights: layers that do the same become one that runs several times.

    python tools/model_converters/tie_layers.py configs/swrn/swrn-28-10-4_1xb128_cifar10.py \\
        work_dirs/swrn-28-10-4_1xb128_cifar10/epoch_200.pth folded.pth --threshold 0.9 --test

Writes the folded checkpoint, a config that loads it (folded.py) and a diagram of the loops (folded.png);
prints the loops and the parameters and, with --test, what the config's test gives before and after.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
from pathlib import Path

from mmengine.config import DictAction

from mmrecur.analysis.sharing_figures import plot_loops
from mmrecur.analysis.tied_layers import layer_sequences
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.summary import print_results
from mmrecur.apis.tying import (
    fold_file,
    folding_report,
    load_model,
    metrics_before_and_after,
    read_whole_config,
)
from mmrecur.engine.figures import save_figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config, or a module as in "mmrecur.SWRN(depth=16, width=2)"')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('out', help='checkpoint to write, OUT.pth')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.9,
        help='least similarity of layers that become one (default: 0.9)',
    )
    parser.add_argument('--test', action='store_true', help="run the config's test before and after")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    cfg = read_whole_config(args.config, args.cfg_options)
    out = Path(args.out)
    folding = fold_file(cfg, args.checkpoint, out, args.threshold)
    new_config = out.with_suffix('.py')
    new = load_config(str(new_config))
    model = load_model(new, out)
    picture = save_figure(plot_loops(layer_sequences(model)), out.with_suffix('.png'))
    print(folding_report(model, folding))
    if args.test:
        print(metrics_before_and_after((cfg, args.checkpoint), (new, out)))
    print_results({'checkpoint': str(out), 'config': str(new_config), 'loops': str(picture)})


if __name__ == '__main__':
    with clean_errors():
        main()
