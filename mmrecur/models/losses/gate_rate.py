"""The rate at which gates let samples pass as an objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_flag, check_weight
from mmrecur.models.layers.loop.block import GateDecision
from mmrecur.models.layers.loop.gate import check_rate
from mmrecur.registry import MODELS


@MODELS.register_module()
class GateRateLoss(nn.Module):
    r"""Penalty that draws the rate of each gate to a target.

    .. math:: L = \lambda \sum_g (r_g - t)^2

    over the gates g of all blocks and iterations, where :math:`r_g` is the share of a batch's samples that
    reached the gate which it lets pass. A gate that none reached adds nothing. Guo et al., *Dynamic
    Recursive Neural Network*, CVPR 2019, Section 4; the form is that of Veit and Belongie,
    https://arxiv.org/abs/1711.11503, equation 6.

    Args:
        target_rate (float): The rate t. Defaults to 0.7.
        loss_weight (float): The factor lambda. Defaults to 1.0.
        average (bool): Divide by the number of gates. Defaults to False.

    Raises:
        TypeError, ValueError: If an argument is wrong.

    Example:
        >>> import torch
        >>> loss = GateRateLoss(target_rate=0.5)
        >>> loss([GateDecision(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))])
        tensor(0.2500)
    """

    def __init__(self, target_rate: float = 0.7, loss_weight: float = 1.0, average: bool = False) -> None:
        super().__init__()
        check_rate('target_rate', target_rate)
        check_weight('loss_weight', loss_weight)
        check_flag(average=average)
        self.target_rate = target_rate
        self.loss_weight = loss_weight
        self.average = average

    def forward(self, decisions: Sequence[GateDecision]) -> Tensor:
        """Compute the penalty.

        Args:
            decisions (Sequence[GateDecision]): Of every block and iteration, one or more.

        Returns:
            Tensor: A scalar.
        """
        rates = torch.stack([decision.rate() for decision in decisions])
        reached = torch.stack([decision.reached.any() for decision in decisions])
        total = ((rates - self.target_rate).square() * reached).sum()
        return self.loss_weight * (total / len(decisions) if self.average else total)
