"""Loops that run a given number of iterations, to time networks at any rate of the gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.layers.loop.block import LoopBlock, gated_loop_blocks
from mmrecur.models.layers.loop.gate import check_rate


def spread_iterations(
    limits: Mapping[str, int], batch_size: int, rate: float, seed: int = 0
) -> dict[str, list[int]]:
    """Choose the iterations of each loop and sample of a batch if every gate lets the same share pass.

    All pairs of a sample and a loop with the same limit are taken together. A share of ``rate**k`` of these
    pairs, rounded to whole pairs, runs k iterations or more. Which pairs they are is random. Even a batch of
    a single image therefore runs about the average number of iterations.

    Args:
        limits (Mapping[str, int]): Maximum number of iterations of each loop, by name.
        batch_size (int): Number of samples.
        rate (float): Share of the samples reaching a gate that it lets pass; 1 for all.
        seed (int): Seed of the random choice. Defaults to 0.

    Returns:
        dict[str, list[int]]: Number of iterations for each sample, by the name of the loop.

    Raises:
        ValueError: If ``rate`` is not in (0, 1].

    Example:
        >>> spread_iterations({'layer3.1': 2}, batch_size=4, rate=0.5)  # two of four, one of two
        {'layer3.1': [2, 1, 0, 0]}
    """
    if rate != 1:
        check_rate('rate', rate)
    generator = torch.Generator().manual_seed(seed)
    iterations: dict[str, list[int]] = {}
    for limit in sorted(set(limits.values())):
        names = [name for name, own in limits.items() if own == limit]
        count = len(names) * batch_size
        lengths = torch.zeros(count, dtype=torch.long)
        for k in range(1, limit + 1):
            lengths[: round(count * rate**k)] += 1
        rows = lengths[torch.randperm(count, generator=generator)].view(len(names), batch_size)
        iterations.update(zip(names, rows.tolist()))
    return {name: iterations[name] for name in limits}


@contextmanager
def forced_iterations(model: nn.Module, iterations: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Force loops to run given numbers of iterations, in evaluation and within the context.

    The gates still compute their scores, and only their decisions are replaced. The network therefore takes
    the time that it takes with gates that decide so, whether its loops skip or mask samples.

    Args:
        model (nn.Module): Network with gated loops.
        iterations (Mapping[str, Sequence[int]]): Number of iterations for each sample of a batch, by the name
            of the loop in ``model``. Other loops run freely.

    Raises:
        ValueError: On entry, if a name is not that of a gated loop, or if a number is above the limit of the
            loop or below the number of iterations without a gate. In the forward pass, if the batch has
            another number of samples.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> model = DRResNet(depth=16).eval()
        >>> with forced_iterations(model, {'layer2.1': [2, 0], 'layer3.1': [1, 1]}), torch.no_grad():
        ...     features = model(torch.rand(2, 3, 32, 32))
    """
    blocks = gated_loop_blocks(model)
    handles: list[Any] = []
    try:
        for name, counts in iterations.items():
            if name not in blocks:
                known = ', '.join(blocks) or 'none, no loop has a gate'
                raise ValueError(f'iterations of {name!r}, allowed: {known}')
            handles += _force(name, blocks[name], list(counts))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _force(name: str, block: LoopBlock, counts: list[int]) -> list[Any]:
    """Add hooks that replace the decisions of the gate of a loop; return their handles."""
    first, limit = block.first_gated, block.num_iterations
    if not counts or min(counts) < first or max(counts) > limit:
        raise ValueError(f'iterations of {name} are {counts}, allowed: from {first} to {limit}')
    device = next(block.gate.parameters()).device
    table = torch.tensor(counts)
    # a masked loop asks the gate about all samples, a skipping one about those still in the loop
    masked = [(table > k).to(device) for k in range(first, limit)]
    left = [(table[table >= k] > k).to(device) for k in range(first, limit)]
    calls = 0

    def start(module: nn.Module, args: tuple) -> None:
        nonlocal calls
        calls = 0
        if len(args[0]) != len(counts):
            raise ValueError(f'{name} has iterations of {len(counts)} samples and got {len(args[0])}')

    def decide(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (masked if len(output) == len(counts) else left)[calls - 1]

    return [block.register_forward_pre_hook(start), block.gate.register_forward_hook(decide)]
