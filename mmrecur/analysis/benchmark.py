"""Time models in turn, so that the ratios of their times are reliable on a noisy machine.

Other load slows down all models of a round equally, so the ratios hardly change.
"""

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
    """Times of a model, alone and relative to a reference timed in the same rounds.

    Attributes:
        seconds (float): Median time of a call.
        ratio (float): Median over the rounds of the ratio to the reference's time in the same round.
        low (float): First quartile of these ratios.
        high (float): Third quartile of these ratios.
        peak_bytes (int): Peak memory of a call in bytes, without the weights and the input.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    peak_bytes: int


def inference_form(model: nn.Module) -> nn.Module:
    """Return a copy of a model in its inference form.

    Models without ``switch_to_deploy`` get their batch norms fused into the convolutions.

    Args:
        model (nn.Module): A backbone, or a model that contains one. It is not changed.

    Returns:
        nn.Module: The copy, in evaluation mode.
    """
    model = copy.deepcopy(model)
    if any(isinstance(module, Deployable) for module in model.modules()):
        return deploy(model)
    model.eval()  # some backbones return None, so the call cannot be chained
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
        return model
    return fuse_conv_bn(model)


def evaluation_call(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that runs a forward pass in evaluation mode without gradients."""
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(x)

    return call


def training_call(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a function that runs a training step without the optimizer.

    The loss is the sum of the means of all outputs.
    """
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
    """Time functions in turn, round by round.

    Args:
        calls (Sequence[Callable]): Functions to time. The first is the reference of the ratios.
        device (torch.device): Device on which they run.
        rounds (int): Number of timed rounds. Defaults to 20.
        warmup (int): Number of rounds before them that are not timed. Defaults to 3.

    Returns:
        list[Timing]: A timing for each function.
    """
    times: list[list[float]] = [[] for _ in calls]
    for index in range(-warmup, rounds):
        # Every other round is reversed, so that no call always follows the same one.
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
    """Measure the peak memory that a call allocates.

    Args:
        call (Callable): Function to run.
        device (torch.device): Device on which it runs.

    Returns:
        int: Peak of the bytes held by tensors, beyond those held before the call.
    """
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    call()  # A training step frees the gradients of the step before it, so start from a steady state.
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = [e for e in profile.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
