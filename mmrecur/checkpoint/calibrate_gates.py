"""Calibration of gates: the same rates in evaluation, without noise, as in training with noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.common.modes import evaluation_mode
from mmrecur.models.layers.loop.block import LoopBlock, gated_loop_blocks
from mmrecur.models.layers.loop.gate import GumbelGate, check_rate, expected_iterations


def target_rate(backbone: LoopBackbone) -> float:
    """Return the target rate in the objective of a backbone's gates.

    Args:
        backbone (LoopBackbone): Backbone in its training form.

    Returns:
        float: The rate t.

    Raises:
        ValueError: If the backbone has no objective with a target rate.
    """
    rate = getattr(getattr(backbone, 'loss_gate', None), 'target_rate', None)
    if rate is None:
        raise ValueError('rate=None for a backbone without target rate, allowed: a number between 0 and 1')
    return rate


def has_target_rate(backbone: nn.Module) -> bool:
    """Return whether a network has gates and an objective with their target rate."""
    gates = [block.gate for block in gated_loop_blocks(backbone).values()]
    has_rate = getattr(getattr(backbone, 'loss_gate', None), 'target_rate', None) is not None
    return has_rate and any(isinstance(gate, GumbelGate) for gate in gates)


@torch.no_grad()
def calibrate_gates(backbone: LoopBackbone, images: Tensor, rate: float | None = None) -> dict[str, float]:
    """Shift the biases of gates so that loops run as often in evaluation as in training at their target rate.

    A gate decides at random in training, but takes the more probable decision in evaluation. One that lets
    every sample pass with probability 0.7 meets a target rate of 0.7 in training, and lets all samples pass
    in evaluation. After the shift it lets only the samples with the highest probabilities pass. The shift is
    chosen so that the loop runs ``t + t**2 + ... + t**l`` iterations on average over the given images.

    Loops are calibrated in order, each on the maps that the calibrated loops before it compute. Calibrated
    gates are for evaluation only; continue training with the original ones.

    Args:
        backbone (LoopBackbone): Backbone with gates, in training or inference form. The biases of its gates
            are changed in place.
        images (Tensor): Preprocessed images, shape (N, C, H, W); a few hundred that represent the data.
        rate (float, optional): The rate t. Defaults to None: that of the backbone's objective.

    Returns:
        dict[str, float]: Amount added to the score of passing, by the name of the loop.

    Raises:
        ValueError: If the backbone has no :class:`GumbelGate` s, or if ``rate`` is wrong or missing.

    Example:
        >>> from mmrecur.models.backbones import DRResNet
        >>> shifts = calibrate_gates(DRResNet(depth=16), torch.rand(8, 3, 32, 32))
        >>> list(shifts)
        ['layer2.1', 'layer3.1']
    """
    rate = target_rate(backbone) if rate is None else rate
    check_rate('rate', rate)
    blocks = {n: b for n, b in gated_loop_blocks(backbone).items() if isinstance(b.gate, GumbelGate)}
    if not blocks:
        raise ValueError(f'{type(backbone).__name__} has no gates, allowed: a backbone with gated loops')
    shifts: dict[str, float] = {}
    names = {block: name for name, block in blocks.items()}

    def calibrate(block: nn.Module, args: tuple[Any, ...]) -> None:
        shifts[names[block]] = _shift(block, args[0], rate)

    handles = [block.register_forward_pre_hook(calibrate) for block in blocks.values()]
    try:
        with evaluation_mode(backbone):
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return shifts


def _shift(block: LoopBlock, x: Tensor, rate: float) -> float:
    """Shift the bias of the gate of a loop; return the shift."""
    # a sample runs one iteration for each positive running minimum of its margins
    margins = block.margins(x).cummin(1).values.flatten().sort(descending=True).values
    wanted = round(len(x) * expected_iterations(rate, block.num_iterations - block.first_gated))
    wanted = min(max(wanted, 1), len(margins) - 1)
    shift = -(margins[wanted - 1] + margins[wanted]) / 2
    block.gate.fc2.bias[1] += shift
    return shift.item()
