"""Compare the speed of models that run in turn in one process.

The ratios of the times are reliable on a noisy machine, where the times themselves are not. Each command
prints its options with --help.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterable, Sequence

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrecur.analysis import complexity, loop_benchmark, recnet_benchmark
from mmrecur.analysis.benchmark import Timing, evaluation_call, inference_form, measure, training_call
from mmrecur.apis.dataset_images import build_test_loader
from mmrecur.apis.runner import clean_errors, load_config
from mmrecur.apis.specs import build_model, read_model, registry_scope
from mmrecur.apis.tying import load_model
from mmrecur.models.backbones import DRResNet, RecNet

MODELS = """Compare two backbones: time, parameters, multiply-adds and peak memory.

A model is a config, whose backbone is timed, or a class with arguments:

    python tools/benchmark.py models 'mmrecur.RLAResNet(depth=50)' \\
        --against 'mmpretrain.ResNet(depth=50, out_indices=(0, 1, 2, 3))' --deploy --shape 4 3 224 224
    python tools/benchmark.py models configs/rla/retinanet_rla-r50_fpn_1x_coco.py \\
        --against mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --train --shape 2 3 320 320
"""
IMAGES = """Compare trained networks, whose cost may depend on the image, on a test set.

The networks are classifiers or detectors, each given by its config and its checkpoint. The images come from
the test set of the first config, evenly spaced, and are loaded before the timing starts.

    python tools/benchmark.py images configs/dr_resnet/resnet20_1xb256_cifar10.py plain.pth \\
        configs/dr_resnet/dr-resnet32_1xb256_cifar10.py dr.pth --num-images 512 --batch-size 1 --deploy
"""
LOOPS = """Compare the time of a DR-ResNet at forced gate rates with the multiply-adds that it saves.

Four forms are timed: all loops run to their end, samples that left a loop skipped, the same decisions with
all samples computed and masked, and no loop run at all. The multiply-adds are counted for the decisions that
were timed. The time ratio should be at most 1.08 times the ratio of the multiply-adds, and skipping should
never be slower than masking. Multiply-adds outside the loops may be slower than those in them; 'at best' is
the time ratio that skipping without overhead would reach.

    python tools/benchmark.py loops --depth 53 --rate 0.7 0.5 --batch-size 1 16 --threads 2 --deploy
"""
RECNET = """Compare RecNet with the plain loop of its equations: time and peak memory.

The plain loop stores the whole output of each CRC layer before the transition block runs. The table shows the
intended ratios of time and memory as limits. Memory excludes the weights and the input; it is not measured
with --cuda-graphs, because a graph holds its memory from the recording on.

    python tools/benchmark.py recnet --arch 60-1280 --batch-size 64 --threads 2
    python tools/benchmark.py recnet --device cuda --cuda-graphs
"""


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argument type for integers of at least ``minimum``."""

    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f'{text} given; allowed: at least {minimum}')
        return int(text)

    return integer


def share(text: str) -> float:
    """Parse a number between 0 and 1, both excluded."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} given; allowed: between 0 and 1, both excluded')
    return float(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)

    def add(name: str, description: str, run: Callable, rounds: int) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=description.splitlines()[0].rstrip('.'), description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        command.add_argument('--device', default=device, help='default: cuda if there is a GPU, else cpu')
        command.add_argument('--threads', type=at_least(1), help='CPU threads (default: all cores)')
        command.add_argument(
            '--rounds', type=at_least(4), default=rounds, help='timed rounds (default: %(default)s)'
        )
        command.set_defaults(run=run)
        return command

    _add_models_options(add('models', MODELS, run_models, rounds=20))
    _add_images_options(add('images', IMAGES, run_images, rounds=8))
    _add_loops_options(add('loops', LOOPS, run_loops, rounds=12))
    _add_recnet_options(add('recnet', RECNET, run_recnet, rounds=12))
    args = parser.parse_args(argv)
    if args.command == 'models' and args.deploy and args.train:
        parser.error('--deploy and --train exclude each other: an inference form cannot be trained')
    if args.command == 'images' and len(args.networks) % 2:
        parser.error(f'{len(args.networks)} files given; allowed: a checkpoint after each config')
    if args.command == 'recnet' and args.cuda_graphs and not args.device.startswith('cuda'):
        parser.error(f'--cuda-graphs with --device {args.device}; allowed: a CUDA device')
    return args


def _add_models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='config, or class with arguments')
    parser.add_argument('--against', required=True, help='reference, given in the same way')
    parser.add_argument('--deploy', action='store_true', help='time the inference form of both')
    parser.add_argument('--train', action='store_true', help='time a training step')
    parser.add_argument(
        '--shape', type=int, nargs=4, action='append', metavar=('N', 'C', 'H', 'W'),
        help='input shape; may be given more than once (default: 1 3 224 224)',
    )  # fmt: skip
    parser.add_argument(
        '--memory-format', choices=('default', 'contiguous', 'channels_last'), default='default',
        help='memory format of the weights and the input; default: that of each model',
    )  # fmt: skip
    parser.add_argument('--amp', choices=('bf16', 'fp16'), help='run both under autocast')
    parser.add_argument('--compile', action='store_true', help='compile both with torch.compile')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')


def _add_images_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('networks', nargs='+', metavar='CONFIG CHECKPOINT', help='the first is the reference')
    parser.add_argument('--num-images', type=at_least(1), default=256, help='default: %(default)s')
    parser.add_argument('--batch-size', type=at_least(1), default=1, help='default: %(default)s')
    parser.add_argument('--deploy', action='store_true', help='time the inference forms')


def _add_loops_options(parser: argparse.ArgumentParser) -> None:
    depths = list(DRResNet.arch_settings)
    parser.add_argument('--depth', type=int, default=53, choices=depths, help='default: %(default)s')
    parser.add_argument(
        '--rate', type=share, nargs='+', default=[0.7],
        help='shares of the samples that each gate lets pass (default: 0.7)',
    )  # fmt: skip
    parser.add_argument(
        '--batch-size', type=at_least(1), nargs='+', default=[1, 16], help='batch sizes (default: 1 16)'
    )
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of the images (default: 224 224, or 32 32 for the CIFAR depths)',
    )  # fmt: skip
    parser.add_argument('--deploy', action='store_true', help='time the inference form')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the choice of the samples (default: %(default)s)'
    )


def _add_recnet_options(parser: argparse.ArgumentParser) -> None:
    archs = list(RecNet.arch_settings)
    parser.add_argument('--arch', default='60-1280', choices=archs, help='default: %(default)s')
    parser.add_argument('--batch-size', type=at_least(1), default=64, help='default: %(default)s')
    parser.add_argument(
        '--size', type=at_least(1), default=32, help='height and width of the images (default: %(default)s)'
    )
    parser.add_argument('--compile', action='store_true', help='compile both with torch.compile')
    parser.add_argument(
        '--cuda-graphs', action='store_true', help="replay this package's RecNet as CUDA graphs"
    )


def print_table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], note: str = '') -> None:
    """Print a table whose first column is text and the others are numbers."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify='right' if i else 'left', overflow='fold')
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False) if sys.stdout.isatty() else Console(width=140, markup=False)
    console.print(table)
    if note:
        console.print(note)


def quartiles(low: float, high: float) -> str:
    """Format the quartiles of a ratio."""
    return f'{low:.3f}-{high:.3f}'


def device_text(args: argparse.Namespace) -> str:
    """Return the device and the number of threads for a title."""
    name = torch.cuda.get_device_name() if args.device.startswith('cuda') else platform.processor()
    return f'{args.device} ({name or platform.machine()}), {torch.get_num_threads()} threads'


def run_models(args: argparse.Namespace) -> None:
    """Compare two backbones at each input shape."""
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    rows = [row for shape in args.shape or [[1, 3, 224, 224]] for row in time_models(args, shape)]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    form = 'training step' if args.train else 'inference form' if args.deploy else 'evaluation'
    print_table(
        f'{form}, {device_text(args)}',
        ('model', 'shape', 'ms', 'ratio', 'quartiles', 'parameters', 'GFLOPs', 'peak MiB'),
        [
            (
                row['model'],
                'x'.join(map(str, row['shape'])),
                f'{row["seconds"] * 1e3:.1f}',
                f'{row["ratio"]:.3f}',
                quartiles(row['low'], row['high']),
                f'{row["parameters"]:,}',
                f'{row["flops"] / 1e9:.3f}',
                f'{row["peak_bytes"] / 2**20:.1f}',
            )
            for row in rows
        ],
        'ratio: to the first model in the same round, median over the rounds. FLOPs are multiply-adds.',
    )


def time_models(args: argparse.Namespace, shape: Sequence[int]) -> list[dict]:
    """Return the results of the reference and of the model at one input shape."""
    layouts = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
    layout = layouts.get(args.memory_format)
    specs = (args.against, args.model)
    models = [build_model(*read_model(spec, backbone_only=True)).to(args.device) for spec in specs]
    if args.deploy:
        models = [inference_form(model) for model in models]
    x = torch.randn(*shape, device=args.device)
    if layout is not None:
        models = [model.to(memory_format=layout) for model in models]
        x = x.contiguous(memory_format=layout)
    counts = [complexity.measure(model, x[:1])[''] for model in models]
    if args.compile:
        models = [torch.compile(model) for model in models]
    make_call = training_call if args.train else evaluation_call
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(args.amp)
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        timings = measure([make_call(model, x) for model in models], x.device, args.rounds)
    results = []
    for spec, count, timing in zip(specs, counts, timings):
        size = dict(parameters=count.parameters, flops=count.multiply_adds)
        results.append(dict(model=spec, shape=list(shape), **size, **vars(timing)))
    return results


def run_images(args: argparse.Namespace) -> None:
    """Compare trained networks on images."""
    pairs = [*zip(args.networks[::2], args.networks[1::2])]
    # The libraries log to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        networks = [load_network(config, checkpoint, args) for config, checkpoint in pairs]
        loader, _ = build_test_loader(networks[0][0], args.num_images, args.batch_size, spread=True)
        batches = [*loader]
        calls = [images_call(cfg, model, batches) for cfg, model in networks]
        timings = measure(calls, torch.device(args.device), args.rounds, warmup=1)
    number, form = len(loader.dataset), 'inference form' if args.deploy else 'evaluation'
    print_table(
        f'{form}, {number} images in batches of {args.batch_size}, {device_text(args)}',
        ('network', 'ms per image', 'ratio', 'quartiles'),
        [
            (
                checkpoint,
                f'{timing.seconds * 1e3 / number:.3f}',
                f'{timing.ratio:.3f}',
                quartiles(timing.low, timing.high),
            )
            for (_, checkpoint), timing in zip(pairs, timings)
        ],
        'ratio: to the first network in the same round, median over the rounds',
    )


def load_network(config: str, checkpoint: str, args: argparse.Namespace) -> tuple[Config, nn.Module]:
    """Return a config and its network, in the form to be timed."""
    cfg = load_config(config)
    model = load_model(cfg, checkpoint).to(args.device)
    return cfg, inference_form(model) if args.deploy else model


def images_call(cfg: Config, model: nn.Module, batches: Sequence[dict]) -> Callable[[], None]:
    """Return a function that runs a network on preprocessed batches, up to the outputs of its head."""
    with registry_scope(cfg.get('default_scope')):
        ready = [model.data_preprocessor(batch, False) for batch in batches]

    def call() -> None:
        with torch.inference_mode():
            for batch in ready:
                model(batch['inputs'], batch.get('data_samples'), mode='tensor')

    return call


def run_loops(args: argparse.Namespace) -> None:
    """Compare a DR-ResNet with all loops executed, at each rate and batch size."""
    small = DRResNet.arch_settings[args.depth][2]
    size = args.shape or ([32, 32] if small else [224, 224])
    torch.manual_seed(0)
    model = DRResNet(args.depth).to(args.device).eval()
    if args.deploy:
        model = inference_form(model)
    rows = []
    for rate in args.rate:
        for batch_size in args.batch_size:
            x = torch.randn(batch_size, 3, *size, device=args.device)
            timing = loop_benchmark.time_loops(model, x, rate, args.rounds, args.seed)
            limit, masked_limit = loop_benchmark.LIMITS
            quotient = timing.time / timing.work
            numbers = (timing.best, timing.work, quotient, limit, timing.masked, masked_limit)
            texts = [f'{number:.3f}' for number in numbers]
            times = (f'{timing.seconds * 1e3:.1f}', f'{timing.time:.3f}', quartiles(*timing.quartiles))
            rows.append((f'{rate:g}', str(batch_size), *times, *texts))
    form = 'inference form' if args.deploy else 'evaluation'
    print_table(
        f'DR-ResNet-{args.depth}, {form}, {"x".join(map(str, size))}, {device_text(args)}',
        (
            'rate', 'batch', 'ms', 'time ratio', 'quartiles', 'at best', 'FLOPs ratio', 'quotient', 'limit',
            'to masked', 'limit',
        ),
        rows,
        'time ratio, FLOPs ratio: with samples skipped, relative to all loops executed; quotient: time ratio '
        'over FLOPs ratio; at best: time ratio if skipping had no overhead; to masked: time relative to '
        'masking. FLOPs are multiply-adds.',
    )  # fmt: skip


def run_recnet(args: argparse.Namespace) -> None:
    """Compare RecNet with the plain loop of its equations."""
    torch.manual_seed(0)
    model = RecNet(arch=args.arch).to(args.device)
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    rows = []
    for form in ('inference form', 'training step'):
        train = form == 'training step'
        timings = recnet_benchmark.time_recnet(model, x, train, args.rounds, args.compile, args.cuda_graphs)
        limits = recnet_benchmark.LIMITS[x.device.type, form]
        rows.append(recnet_row(form, *timings, limits, with_memory=not args.cuda_graphs))
    print_table(
        f'RecNet {args.arch}, batch {args.batch_size}, {args.size}x{args.size}, {device_text(args)}',
        ('form', 'plain ms', 'RecNet ms', 'ratio', 'quartiles', 'limit', 'memory ratio', 'memory limit'),
        rows,
    )


def recnet_row(
    form: str, plain: Timing, ours: Timing, limits: tuple[float, float], with_memory: bool
) -> tuple[str, ...]:
    """Return a row of the table of :func:`run_recnet`."""
    return (
        form,
        f'{plain.seconds * 1e3:.1f}',
        f'{ours.seconds * 1e3:.1f}',
        f'{ours.ratio:.3f}',
        quartiles(ours.low, ours.high),
        f'{limits[0]:.2f}',
        f'{ours.peak_bytes / plain.peak_bytes:.3f}' if with_memory else '-',
        f'{limits[1]:.2f}',
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == '__main__':
    with clean_errors():
        main()
