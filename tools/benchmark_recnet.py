"""Time RecNet against the plain loop of its paper's equations: inference form and training step.

The reference builds each CRC layer's whole output, step by step, and then runs the transition block. Both
compute the same, in turn in one process. Aims on two CPU cores: inference form at most 0.85 of the
reference's time and 0.5 of its memory, training step at most 0.95 and 0.8; on a GPU at least 2 and 1.5
times faster, for which --compile compiles both and --cuda-graphs replays ours as a graph. Memory is counted
beyond the weights and the input; not that of a graph, which is held from its recording on.

    python tools/benchmark_recnet.py --arch 60-1280 --batch-size 64 --threads 2
    python tools/benchmark_recnet.py --device cuda --cuda-graphs
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmrecur.analysis.benchmark import Timing, deployed, evaluation_call, measure, training_call
from mmrecur.apis.runner import clean_errors
from mmrecur.models.backbones import RecNet
from mmrecur.models.layers import RecurrentModule

#: Of the reference's time and memory at most, by device and what runs.
AIMS = {
    ('cpu', 'inference form'): (0.85, 0.5),
    ('cpu', 'training step'): (0.95, 0.8),
    ('cuda', 'inference form'): (1 / 2, 0.5),
    ('cuda', 'training step'): (1 / 1.5, 0.8),
}


class PlainModule(nn.Module):
    """Equations 1 to 3 and 6 as they stand, with a module's parameters."""

    def __init__(self, module: RecurrentModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output for every segment, then the transition of them all."""
        crc, states, h = self.module.crc, [], None
        for i, part in enumerate(x.split(crc.in_channels, dim=1)):
            total = crc.conv_x(part)
            if h is not None:
                total = total + crc.conv_h(h)
            h = F.relu(crc.norms[i](total))
            states.append(h)
        return F.relu(self.module.norm(self.module.conv(torch.cat(states, dim=1))))


def plain(model: RecNet) -> RecNet:
    """A copy of a model that computes as the paper writes it."""
    model = copy.deepcopy(model)
    for i in range(model.num_stages):
        stage = getattr(model, f'layer{i + 1}')
        setattr(model, f'layer{i + 1}', nn.Sequential(*map(PlainModule, stage)))
    return model


def as_graph(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward pass without gradients, recorded once and replayed."""
    for _ in range(3):
        with torch.no_grad():
            model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model(x)
    return graph.replay


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--arch', default='60-1280', choices=list(RecNet.arch_settings), help='default: 60-1280'
    )
    parser.add_argument('--batch-size', type=int, default=64, help='images in a batch (default: 64)')
    parser.add_argument('--size', type=int, default=32, help='height and width of the images (default: 32)')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda if there is a GPU, else cpu',
    )  # fmt: skip
    parser.add_argument('--threads', type=int, help='CPU threads (default: all cores)')
    parser.add_argument('--rounds', type=int, default=12, help='timed rounds (default: 12)')
    parser.add_argument('--compile', action='store_true', help='torch.compile both')
    parser.add_argument('--cuda-graphs', action='store_true', help='replay ours as graphs')
    args = parser.parse_args()
    if args.rounds < 4:
        parser.error(f'--rounds {args.rounds}, allowed: at least 4')
    if args.cuda_graphs and not args.device.startswith('cuda'):
        parser.error(f'--cuda-graphs with --device {args.device}, allowed: a CUDA device')
    return args


def compare(what: str, model: RecNet, x: Tensor, args: argparse.Namespace) -> list[Timing]:
    """Time the reference and this package's form."""
    reference = plain(model)
    train = what == 'training step'
    ours = model if train else deployed(model)
    if args.compile:
        reference, ours = torch.compile(reference), torch.compile(ours)
    if not train:
        call = as_graph(ours, x) if args.cuda_graphs else evaluation_call(ours, x)
        return measure([evaluation_call(reference, x), call], x.device, args.rounds)
    if args.cuda_graphs:
        ours = torch.cuda.make_graphed_callables(ours, (x,))
    return measure([training_call(reference, x), training_call(ours, x)], x.device, args.rounds)


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = RecNet(arch=args.arch).to(args.device)
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    shape = f'batch {args.batch_size}, {args.size}x{args.size}'
    table = Table(title=f'RecNet {args.arch}, {shape}, {args.device}')
    columns = ('form', 'reference ms', 'ours ms', 'ratio', 'quartiles', 'aim', 'memory ratio', 'memory aim')
    for column in columns:
        table.add_column(column, justify='left' if column == 'form' else 'right')
    for what in ('inference form', 'training step'):
        reference, ours = compare(what, model, x, args)
        time_aim, memory_aim = AIMS[torch.device(args.device).type, what]
        table.add_row(
            what,
            f'{reference.seconds * 1e3:.1f}',
            f'{ours.seconds * 1e3:.1f}',
            f'{ours.ratio:.3f}',
            f'{ours.low:.3f}-{ours.high:.3f}',
            f'{time_aim:.2f}',
            '-' if args.cuda_graphs else f'{ours.peak_bytes / reference.peak_bytes:.3f}',
            f'{memory_aim:.2f}',
        )
    Console(markup=False, width=120).print(table)


if __name__ == '__main__':
    with clean_errors():
        main()
