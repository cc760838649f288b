"""Tie similar layers of a network with template banks, so that one layer runs several times.

    python tools/model_converters/tie_layers.py configs/swrn/swrn-28-10-4_1xb128_cifar10.py \\
        work_dirs/swrn-28-10-4_1xb128_cifar10/epoch_200.pth tied.pth --threshold 0.9 --test

Write the new checkpoint, a config that loads it (tied.py) and a diagram of the loops (tied.png). Print the
loops and the number of parameters and, with --test, the test metrics before and after. The paper (Learning
Implicitly Recurrent CNNs) calls this folding.
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
    load_model,
    metrics_before_and_after,
    read_whole_config,
    tie_checkpoint,
    tying_report,
)
from mmrecur.engine.figures import save_figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or a module such as "mmrecur.SWRN(depth=16, width=2)"')
    parser.add_argument('checkpoint', help='checkpoint of the model')
    parser.add_argument('out', help='checkpoint to write, with the suffix .pth')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.9,
        help='minimum similarity of tied layers (default: 0.9)',
    )
    parser.add_argument('--test', action='store_true', help="test both networks on the config's test data")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='config values to override',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    cfg = read_whole_config(args.config, args.cfg_options)
    out = Path(args.out)
    tied = tie_checkpoint(cfg, args.checkpoint, out, args.threshold)
    new_config = out.with_suffix('.py')
    new = load_config(str(new_config))
    model = load_model(new, out)
    picture = save_figure(plot_loops(layer_sequences(model)), out.with_suffix('.png'))
    print(tying_report(model, tied))
    if args.test:
        print(metrics_before_and_after((cfg, args.checkpoint), (new, out)))
    print_results({'checkpoint': str(out), 'config': str(new_config), 'loops': str(picture)})


if __name__ == '__main__':
    with clean_errors():
        main()
