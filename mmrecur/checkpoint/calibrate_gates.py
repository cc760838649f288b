"""Gates whose rates in evaluation, without noise, are those that they were trained to have with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.models.backbones.loop_backbone import LoopBackbone
from mmrecur.models.layers.common.modes import evaluation_mode
from mmrecur.models.layers.loop.block import LoopBlock, gated_loop_blocks
from mmrecur.models.layers.loop.gate import GumbelGate, check_rate, expected_iterations


def target_rate(backbone: LoopBackbone) -> float:
    """The rate that a backbone's gates are trained for.

    Args:
        backbone (LoopBackbone): A backbone in the form for training.

    Returns:
        float: The rate t.

    Raises:
        ValueError: If it has no objective with a target rate.
    """
    rate = getattr(getattr(backbone, 'loss_gate', None), 'target_rate', None)
    if rate is None:
        raise ValueError('rate=None for a backbone without target rate, allowed: a number between 0 and 1')
    return rate


@torch.no_grad()
def calibrate_gates(backbone: LoopBackbone, images: Tensor, rate: float | None = None) -> dict[str, float]:
    """Shift the biases of gates until loops run as often in evaluation as their rate says.

    In training a gate that lets every sample pass with a probability of 0.7 has reached a target of 0.7. In
    evaluation, where the more probable decision is taken, it lets all of them pass. Shifted, it lets those
    pass for which the probability is highest, in each loop so many that its iterations for the images given
    are ``t + t**2 + ... + t**l`` on average. The loops are shifted in their order, each on the maps that come
    to it then. The result is for evaluation; to train on, take the gates as they were.

    Args:
        backbone (LoopBackbone): With gates, in any form; its gates' biases are changed.
        images (Tensor): As the backbone gets them, shape (N, C, H, W); some hundred, of all kinds.
        rate (float, optional): The rate t. Defaults to None: that of the backbone's objective.

    Returns:
        dict[str, float]: What was added to the difference of the scores, by the loop's name.

    Raises:
        ValueError: If the backbone has no gates of this package, or ``rate`` is wrong or missing.

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
    """Shift the bias of a loop's gate; by how much."""
    # a sample runs as often as margins are positive from the first on
    margins = block.margins(x).cummin(1).values.flatten().sort(descending=True).values
    wanted = round(len(x) * expected_iterations(rate, block.num_iterations - block.first_gated))
    wanted = min(max(wanted, 1), len(margins) - 1)
    shift = -(margins[wanted - 1] + margins[wanted]) / 2
    block.gate.fc2.bias[1] += shift
    return shift.item()
