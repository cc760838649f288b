"""Time DR-ResNets at forced gate rates."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

from torch import Tensor

from mmrecur.analysis.benchmark import evaluation_call, measure
from mmrecur.analysis.forced_loops import forced_iterations, spread_iterations
from mmrecur.analysis.loop_complexity import measure_loops
from mmrecur.analysis.loop_recorder import LoopRecorder
from mmrecur.models.backbones import DRResNet

#: Limits of the time ratio over the multiply-add ratio, and of the time over that of masking.
LIMITS = (1.08, 1.0)


@dataclass(frozen=True)
class LoopTiming:
    """Time and multiply-adds of a DR-ResNet whose loops skip the samples that have left.

    All ratios are relative to the same network running every loop to its end, unless stated otherwise.

    Attributes:
        seconds (float): Median time of a forward pass.
        time (float): Ratio of the times.
        quartiles (tuple[float, float]): Quartiles of that ratio over the rounds.
        work (float): Ratio of the multiply-adds.
        masked (float): Ratio of the time to the time of masking, which computes all samples.
        best (float): Ratio of the times if skipping samples had no overhead, estimated from the times with
            all iterations and with none.
    """

    seconds: float
    time: float
    quartiles: tuple[float, float]
    work: float
    masked: float
    best: float


def executed_share(model: DRResNet, x: Tensor, iterations: dict[str, list[int]]) -> float:
    """Return the multiply-adds of a batch relative to those with all loops run to their end.

    Args:
        model (DRResNet): Network with gates.
        x (Tensor): Batch of shape (N, C, H, W).
        iterations (dict[str, list[int]]): Number of iterations for each sample, by the name of the loop.

    Returns:
        float: The share, counted from the decisions that the gates made in a forward pass.
    """
    with forced_iterations(model, iterations), LoopRecorder(model, with_maps=False) as recorder:
        evaluation_call(model, x)()
    work = measure_loops(model, x[:1])
    return recorder.times().average_work(work) / work.maximum


def time_loops(model: DRResNet, x: Tensor, rate: float, rounds: int = 12, seed: int = 0) -> LoopTiming:
    """Time a DR-ResNet if every gate lets the same share of the samples pass.

    Four forms are timed in turn: one that skips samples that left a loop, one that runs all loops to their
    end, one that makes the same decisions as the first but computes all samples and masks them, and one that
    runs no loop at all. Each of them computes the scores of the gates.

    Args:
        model (DRResNet): Network with gates, in evaluation mode.
        x (Tensor): Batch of shape (N, C, H, W).
        rate (float): Share of the samples reaching a gate that it lets pass.
        rounds (int): Number of timed rounds. Defaults to 12.
        seed (int): Seed of the random choice of the samples that pass. Defaults to 0.

    Returns:
        LoopTiming: Times and multiply-adds.
    """
    limits = {name: block.num_iterations for name, block in model.loop_blocks().items()}
    iterations = spread_iterations(limits, len(x), rate, seed)
    masking = copy.deepcopy(model)
    for block in masking.loop_blocks().values():
        block.skip = False
    every = {name: [limit] * len(x) for name, limit in limits.items()}
    none = {name: [0] * len(x) for name in limits}
    # The form of interest comes first: `measure` computes ratios to the first call, round by round.
    forms = [
        (model, iterations),
        (copy.deepcopy(model), every),
        (masking, iterations),
        (copy.deepcopy(model), none),
    ]
    work, outside = (executed_share(model, x, counts) for counts in (iterations, none))
    with contextlib.ExitStack() as stack:
        for form, counts in forms:
            stack.enter_context(forced_iterations(form, counts))
        calls = [evaluation_call(form, x) for form, _ in forms]
        skipping, whole, masked, fixed = measure(calls, x.device, rounds)
    rest = fixed.ratio / whole.ratio
    return LoopTiming(
        seconds=skipping.seconds,
        time=1 / whole.ratio,
        quartiles=(1 / whole.high, 1 / whole.low),
        work=work,
        masked=1 / masked.ratio,
        best=rest + (1 - rest) * (work - outside) / (1 - outside),
    )
