"""The regulariser that pushes layers to do the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_weight
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.registry import MODELS

#: The regulariser with the paper's weight (Section 4.4).
RECURRENCE: Mapping = MappingProxyType(dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01))


@MODELS.register_module()
class RecurrenceLoss(nn.Module):
    """Minus the sum of the layer similarity matrices, Savarese and Maire 2019, Section 3.2.

    ``L_R = L - lambda * sum_ij S_ij``: the larger lambda, the more layers become one.

    Args:
        loss_weight (float): Lambda; 0.01 in the paper's shortest paths (Section 4.4). Defaults to 0.01.

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> from mmrecur.models.layers import TemplateBank
        >>> bank = TemplateBank(4, 1, (8, 8, 3, 3))
        >>> round(RecurrenceLoss(0.5)([bank]).item(), 4)  # one template: all 16 similarities are 1
        -8.0
    """

    def __init__(self, loss_weight: float = 0.01) -> None:
        super().__init__()
        check_weight('loss_weight', loss_weight)
        self.loss_weight = loss_weight

    def forward(self, banks: Iterable[TemplateBank]) -> Tensor:
        """Compute the loss.

        Args:
            banks (Iterable[TemplateBank]): The groups of layers.

        Returns:
            Tensor: A scalar.
        """
        return -self.loss_weight * sum(bank.similarity().sum() for bank in banks)
