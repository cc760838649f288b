"""Time the loops of DR-ResNets at gate rates that are forced, against the multiply-adds they save.

Four forms run in turn in one process: all loops to their end, samples that left a loop left out, the same
decisions with all samples computed and masked, and no sample in any loop. The gates compute their scores in
each, and what they decide is replaced (mmrecur.analysis.forced_loops), such that the given share of samples
passes at each. The multiply-adds are those of the very decisions timed. Aims: the ratio of times at most 1.08
of that of multiply-adds, and never slower than masking. A multiply-add outside the loops, on large maps, may
take longer than one in them: 'at best' is the ratio of times if leaving samples out cost nothing, from the
times with all loops and with none.

    python tools/benchmark_loops.py --depth 53 --rate 0.7 0.5 --batch-size 1 16 --threads 2 --deploy
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import contextlib
import copy
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from mmrecur.analysis.benchmark import deployed, evaluation_call, measure
from mmrecur.analysis.forced_loops import forced_iterations, spread_iterations
from mmrecur.analysis.loop_complexity import measure_loops
from mmrecur.analysis.loop_recorder import LoopRecorder
from mmrecur.apis.runner import clean_errors
from mmrecur.models.backbones import DRResNet

#: At most: ratio of times over that of multiply-adds, time over that of masking.
AIMS = (1.08, 1.0)
COLUMNS = (
    'rate', 'batch', 'ms', 'time ratio', 'quartiles', 'at best', 'FLOPs ratio', 'quotient', 'aim',
    'to masked', 'aim',
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came out at a rate and a batch size.

    Attributes:
        seconds (float): Median time with samples left out.
        time (float): Relative to all loops executed.
        spread (tuple[float, float]): Quartiles of that.
        work (float): Multiply-adds relative to all loops executed.
        masked (float): Time relative to masking.
        best (float): Time relative to all loops executed if leaving samples out cost nothing.
    """

    seconds: float
    time: float
    spread: tuple[float, float]
    work: float
    masked: float
    best: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--depth', type=int, default=53, choices=list(DRResNet.arch_settings), help='default: 53'
    )
    parser.add_argument(
        '--rate', type=float, nargs='+', default=[0.7], help='shares that gates let pass (default: 0.7)'
    )
    parser.add_argument(
        '--batch-size', type=int, nargs='+', default=[1, 16], help='images in a batch (default: 1 16)'
    )
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of the images (default: 224 224, 32 32 for the depths of CIFAR)',
    )  # fmt: skip
    parser.add_argument('--deploy', action='store_true', help='inference form (BN folded)')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda if there is a GPU, else cpu',
    )  # fmt: skip
    parser.add_argument('--threads', type=int, help='CPU threads (default: all cores)')
    parser.add_argument('--rounds', type=int, default=12, help='timed rounds (default: 12)')
    parser.add_argument('--seed', type=int, default=0, help='of the draw of who leaves (default: 0)')
    args = parser.parse_args(argv)
    if args.rounds < 4:
        parser.error(f'--rounds {args.rounds}, allowed: at least 4')
    if not all(0 < rate < 1 for rate in args.rate):
        parser.error(f'--rate {args.rate}, allowed: numbers between 0 and 1, both excluded')
    if min(args.batch_size) < 1:
        parser.error(f'--batch-size {args.batch_size}, allowed: at least 1')
    small = DRResNet.arch_settings[args.depth][2]
    args.shape = args.shape or ([32, 32] if small else [224, 224])
    return args


def executed_share(model: DRResNet, x: torch.Tensor, iterations: dict[str, list[int]]) -> float:
    """Multiply-adds of a batch relative to those of all loops executed, with what the gates really did."""
    with forced_iterations(model, iterations), LoopRecorder(model, with_maps=False) as recorder:
        evaluation_call(model, x)()
    work = measure_loops(model, x[:1])
    return recorder.times().average_work(work) / work.maximum


def compare(model: DRResNet, rate: float, batch_size: int, args: argparse.Namespace) -> Row:
    """Time the four forms at one rate and batch size."""
    x = torch.randn(batch_size, 3, *args.shape, device=args.device)
    limits = {name: block.num_iterations for name, block in model.loop_blocks().items()}
    iterations = spread_iterations(limits, batch_size, rate, args.seed)
    masking = copy.deepcopy(model)
    for block in masking.loop_blocks().values():
        block.skip = False
    to_their_end = {name: [limit] * batch_size for name, limit in limits.items()}
    never = {name: [0] * batch_size for name in limits}
    # the form of interest first: it is what the others are compared with, round by round
    forms = [
        (model, iterations),
        (copy.deepcopy(model), to_their_end),
        (masking, iterations),
        (copy.deepcopy(model), never),
    ]
    work, outside = (executed_share(model, x, counts) for counts in (iterations, never))
    with contextlib.ExitStack() as stack:
        for form, counts in forms:
            stack.enter_context(forced_iterations(form, counts))
        calls = [evaluation_call(form, x) for form, _ in forms]
        skipping, whole, masked, fixed = measure(calls, x.device, args.rounds)
    rest = fixed.ratio / whole.ratio
    return Row(
        seconds=skipping.seconds,
        time=1 / whole.ratio,
        spread=(1 / whole.high, 1 / whole.low),
        work=work,
        masked=1 / masked.ratio,
        best=rest + (1 - rest) * (work - outside) / (1 - outside),
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = DRResNet(args.depth).to(args.device).eval()
    if args.deploy:
        model = deployed(model)
    form = 'inference form' if args.deploy else 'evaluation'
    where = f'{args.device}, {torch.get_num_threads()} threads'
    table = Table(title=f'DR-ResNet-{args.depth}, {form}, {"x".join(map(str, args.shape))}, {where}')
    for column in COLUMNS:
        table.add_column(column, justify='right')
    for rate in args.rate:
        for batch_size in args.batch_size:
            row = compare(model, rate, batch_size, args)
            table.add_row(
                f'{rate:g}',
                str(batch_size),
                f'{row.seconds * 1e3:.1f}',
                f'{row.time:.3f}',
                f'{row.spread[0]:.3f}-{row.spread[1]:.3f}',
                f'{row.best:.3f}',
                f'{row.work:.3f}',
                f'{row.time / row.work:.3f}',
                f'{AIMS[0]:.2f}',
                f'{row.masked:.3f}',
                f'{AIMS[1]:.2f}',
            )
    console = Console(markup=False, width=120)
    console.print(table)
    console.print(
        'time and FLOPs ratio: with samples left out, relative to all loops executed; quotient: of the two; '
        'at best: time ratio if leaving out cost nothing; to masked: time relative to masking. FLOPs are '
        'multiply-adds.'
    )


if __name__ == '__main__':
    with clean_errors():
        main()
