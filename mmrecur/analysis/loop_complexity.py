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
        iterations (int): Maximum number of iterations.
        iteration (int): Multiply-adds of one iteration of the block.
        gate (int): Multiply-adds of one decision; 0 without a gate.
        first_gated (int): Index of the first iteration that the gate decides on. Every image runs the
            iterations before it. Defaults to 0.
    """

    iterations: int
    iteration: int
    gate: int
    first_gated: int = 0


@dataclass(frozen=True)
class LoopComplexity:
    """Multiply-adds of a network with loops for one image.

    Attributes:
        fixed (int): Multiply-adds outside loops.
        loops (dict[str, LoopWork]): Loops by name.
    """

    fixed: int
    loops: dict[str, LoopWork]

    @property
    def maximum(self) -> int:
        """int: Multiply-adds if every loop runs all iterations."""
        return round(self.average(1.0))

    def average(self, rates: float | Mapping[str, Sequence[float]]) -> float:
        """Compute the average number of multiply-adds for given rates of the gates.

        Args:
            rates (float or Mapping): Share of the samples reaching a gate that it lets pass: one number for
                all gates, or by the name of a loop one for each of its iterations, as measured (1 for
                iterations without a gate).

        Returns:
            float: Multiply-adds.

        Raises:
            ValueError: If a loop does not have one rate for each iteration.
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
        model (nn.Module): Backbone or classifier. It runs in evaluation mode during the measurement.
        inputs (Tensor): Image, shape (1, C, H, W).

    Returns:
        LoopComplexity: Multiply-adds, counted as by :func:`mmrecur.analysis.complexity.measure`.

    Raises:
        ValueError: If ``inputs`` is not a batch of one image.
    """
    work = count_work(model, inputs)  # counts by tracing, which runs all iterations
    loops = {}
    for name, block in loop_blocks(model).items():
        own, gate, count = work[name], work[f'{name}.gate'], block.num_iterations
        decisions = count - block.first_gated
        loops[name] = LoopWork(count, (own - gate) // count, gate // decisions, block.first_gated)
    in_loops = LoopComplexity(0, loops).maximum
    return LoopComplexity(work[''] - in_loops, loops)
