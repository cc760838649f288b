"""Side-by-side timing of models, interleaved so that a noisy machine disturbs both alike."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from torch import Tensor, nn

from mmrecur.models.deployable import Deployable, deploy


@dataclass
class Timing:
    """Times of one model against a reference, from the same rounds.

    Attributes:
        seconds (float): Median time of a call.
        ratio (float): Median over the rounds of the time relative to the reference's in that round.
        low (float): First quartile of these ratios.
        high (float): Third quartile.
        peak_bytes (int): Most memory that a call held beyond the weights and the input.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    peak_bytes: int


def deployed(model: nn.Module) -> nn.Module:
    """A copy of a model in its inference form; of others than this package's, with BN folded.

    Args:
        model (nn.Module): The model, alone or around a backbone, left as it is.

    Returns:
        nn.Module: The copy, in evaluation mode.
    """
    model = copy.deepcopy(model)
    if any(isinstance(module, Deployable) for module in model.modules()):
        return deploy(model)
    model.eval()  # not chained: some backbones return None
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
        return model
    return fuse_conv_bn(model)


def evaluation_call(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward pass in evaluation mode without gradients."""
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(x)

    return call


def training_call(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One training step without the optimiser: forward, loss over all outputs, backward."""
    model.train()

    def call() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        outputs = model(x)
        sum(output.mean() for output in outputs).backward()

    return call


def measure(
    calls: Sequence[Callable[[], None]], device: torch.device, rounds: int = 20, warmup: int = 3
) -> list[Timing]:
    """Time calls in turn, round by round; the first is the reference.

    Args:
        calls (Sequence[Callable]): What to time.
        device (torch.device): Where they run.
        rounds (int): Timed rounds. Defaults to 20.
        warmup (int): Rounds before. Defaults to 3.

    Returns:
        list[Timing]: One a call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for index in range(-warmup, rounds):
        # every other round in reverse, so that no call always follows the same one
        order = range(len(calls)) if index % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            seconds = _timed(calls[i], device)
            if index >= 0:
                times[i].append(seconds)
    timings = []
    for call, own in zip(calls, times):
        ratios = [a / b for a, b in zip(own, times[0])]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        timings.append(Timing(statistics.median(own), ratio, low, high, peak_memory(call, device)))
    return timings


def _timed(call: Callable[[], None], device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(call: Callable[[], None], device: torch.device) -> int:
    """Most memory a call holds at a time beyond what was held before.

    Args:
        call (Callable): What to run.
        device (torch.device): Where it runs.

    Returns:
        int: Bytes of tensors, counted from the allocator's events.
    """
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    call()  # gradients of the last call are freed inside the next: count from a steady state
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = [e for e in profile.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
