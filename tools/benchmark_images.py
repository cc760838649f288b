"""Time networks side by side on the images of a test data set: for networks whose work depends on the image.

CONFIG and CHECKPOINT, given for each network in turn, are those of classifiers or detectors; the test data
are those of the first config, of which images are taken from all over the data set and loaded before the
clock starts. The networks run in turn, so that the ratios hold on a noisy machine where milliseconds do not.

    python tools/benchmark_images.py --num-images 512 --batch-size 1 --deploy \\
        configs/dr_resnet/resnet20_1xb256_cifar10.py plain.pth \\
        configs/dr_resnet/dr-resnet32_1xb256_cifar10.py dr.pth
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrecur.analysis.benchmark import deployed, measure
from mmrecur.apis.dataset_images import build_test_loader
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.specs import registry_scope
from mmrecur.apis.tying import load_model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('networks', nargs='+', metavar='CONFIG CHECKPOINT', help='the first is the reference')
    parser.add_argument('--num-images', type=int, default=256, help='images timed (default: 256)')
    parser.add_argument('--batch-size', type=int, default=1, help='default: 1')
    parser.add_argument('--deploy', action='store_true', help='inference form (BN folded) of all')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda if there is a GPU, else cpu',
    )  # fmt: skip
    parser.add_argument('--threads', type=int, help='CPU threads (default: all cores)')
    parser.add_argument('--rounds', type=int, default=8, help='timed rounds (default: 8)')
    args = parser.parse_args(argv)
    if len(args.networks) % 2:
        parser.error(f'{len(args.networks)} files given; allowed: a checkpoint after each config')
    for option, least in (('num_images', 1), ('batch_size', 1), ('rounds', 4)):
        value = getattr(args, option)
        if value < least:
            parser.error(f'argument --{option.replace("_", "-")}: {value} given; allowed: at least {least}')
    return args


def prepare(config: str, checkpoint: str, args: argparse.Namespace) -> tuple[Config, nn.Module]:
    """A network in the form to be timed, and its config."""
    cfg = load_config(config)
    model = load_model(cfg, checkpoint).to(args.device)
    if args.deploy:
        model = deployed(model)
    return cfg, model


def call_of(cfg: Config, model: nn.Module, batches: list[dict]) -> Callable[[], None]:
    """All batches through the network, from images that are preprocessed to the head's outputs."""
    with registry_scope(cfg.get('default_scope')):
        ready = [model.data_preprocessor(batch, False) for batch in batches]

    def call() -> None:
        with torch.inference_mode():
            for batch in ready:
                model(batch['inputs'], batch.get('data_samples'), mode='tensor')

    return call


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    # The libraries log to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        pairs = [*zip(args.networks[::2], args.networks[1::2])]
        networks = [prepare(config, checkpoint, args) for config, checkpoint in pairs]
        loader, _ = build_test_loader(networks[0][0], args.num_images, args.batch_size, spread=True)
        batches = [*loader]
        number = len(loader.dataset)
        calls = [call_of(cfg, model, batches) for cfg, model in networks]
        timings = measure(calls, torch.device(args.device), args.rounds, warmup=1)
    form = 'inference form' if args.deploy else 'evaluation'
    where = f'{args.device}, {torch.get_num_threads()} threads'
    table = Table(title=f'{form}, {number} images in batches of {args.batch_size}, {where}')
    table.add_column('network', overflow='fold')
    for column in ('ms per image', 'ratio', 'quartiles'):
        table.add_column(column, justify='right')
    for (_, checkpoint), timing in zip(pairs, timings):
        milliseconds = f'{timing.seconds * 1e3 / number:.3f}'
        table.add_row(checkpoint, milliseconds, f'{timing.ratio:.3f}', f'{timing.low:.3f}-{timing.high:.3f}')
    console = Console(markup=False, width=120)
    console.print(table)
    console.print('ratio: median over rounds to the first network in the same round')


if __name__ == '__main__':
    with clean_errors():
        main()
