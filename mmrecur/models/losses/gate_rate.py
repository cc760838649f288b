"""Loss that holds the pass rate of gates at a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrecur.checks import check_flag, check_weight
from mmrecur.models.layers.loop.block import GateDecision
from mmrecur.models.layers.loop.gate import check_rate
from mmrecur.registry import MODELS


@MODELS.register_module()
class GateRateLoss(nn.Module):
    r"""Squared deviation of the pass rate of each gate from a target.

    .. math:: L = \lambda \sum_g (r_g - t)^2

    The sum runs over the gates g of all blocks and iterations; :math:`r_g` is the fraction of the samples
    reaching gate g that it lets pass. Gates that no sample reaches do not contribute. Guo et al., *Dynamic
    Recursive Neural Network*, CVPR 2019, Section 4, in the form of Veit and Belongie,
    https://arxiv.org/abs/1711.11503, equation 6.

    Args:
        target_rate (float): Target rate t. Defaults to 0.7.
        loss_weight (float): Factor lambda. Defaults to 1.0.
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
        """Compute the loss.

        Args:
            decisions (Sequence[GateDecision]): The decisions of all blocks and iterations, at least one.

        Returns:
            Tensor: Scalar.
        """
        rates = torch.stack([decision.rate() for decision in decisions])
        reached = torch.stack([decision.reached.any() for decision in decisions])
        total = ((rates - self.target_rate).square() * reached).sum()
        return self.loss_weight * (total / len(decisions) if self.average else total)
