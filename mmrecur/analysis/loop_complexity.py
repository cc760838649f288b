"""Multiply-adds of networks with loops, as a function of how often the loops run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mmrecur.analysis.complexity import count_work
from mmrecur.models.layers.loop.block import loop_blocks


@dataclass(frozen=True)
class LoopWork:
    """Multiply-adds of a loop for one image.

    Attributes:
        iterations (int): Iterations at most.
        iteration (int): Multiply-adds of one iteration of the block.
        gate (int): Of one decision; 0 without a gate.
        first_gated (int): Index of the first iteration that the gate decides on; every image runs those
            before it. Defaults to 0.
    """

    iterations: int
    iteration: int
    gate: int
    first_gated: int = 0


@dataclass(frozen=True)
class LoopComplexity:
    """Multiply-adds of a network for one image, taken apart.

    Attributes:
        fixed (int): Of what every image goes through.
        loops (dict[str, LoopWork]): The loops by name.
    """

    fixed: int
    loops: dict[str, LoopWork]

    @property
    def maximum(self) -> int:
        """int: Multiply-adds when every loop runs to its end."""
        return round(self.average(1.0))

    def average(self, rates: float | Mapping[str, Sequence[float]]) -> float:
        """Average multiply-adds.

        Args:
            rates (float or Mapping): The share of the samples that reach a gate which it lets pass: one
                for all gates, or for each loop by name those of its iterations, as measured (1 for iterations
                without a gate).

        Returns:
            float: Multiply-adds.

        Raises:
            ValueError: If a loop has no rates or not one for each iteration.
        """
        total = float(self.fixed)
        for name, work in self.loops.items():
            free = work.first_gated
            if isinstance(rates, (int, float)):
                own = [1.0] * free + [rates] * (work.iterations - free)
            else:
                own = rates.get(name, ())
            if len(own) != work.iterations:
                raise ValueError(
                    f'rates of {name} are {list(own)!r}, allowed: {work.iterations} numbers from 0 to 1'
                )
            reached = 1.0
            for index, rate in enumerate(own):
                total += reached * work.gate if index >= free else 0
                reached *= rate
                total += reached * work.iteration
        return total


def measure_loops(model: nn.Module, inputs: Tensor) -> LoopComplexity:
    """Count the multiply-adds of a network with loops.

    Args:
        model (nn.Module): A backbone or a classifier; put into evaluation mode for the measurement.
        inputs (Tensor): Image, shape (1, C, H, W).

    Returns:
        LoopComplexity: The counts, as of :func:`mmrecur.analysis.complexity.measure`.

    Raises:
        ValueError: If ``inputs`` is not a batch of one image.
    """
    work = count_work(model, inputs)  # tracing computes all iterations
    loops = {}
    for name, block in loop_blocks(model).items():
        own, gate, count = work[name], work[f'{name}.gate'], block.num_iterations
        decisions = count - block.first_gated
        loops[name] = LoopWork(count, (own - gate) // count, gate // decisions, block.first_gated)
    in_loops = LoopComplexity(0, loops).maximum
    return LoopComplexity(work[''] - in_loops, loops)
