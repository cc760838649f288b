"""Loss that makes the layers of a template bank similar, so that they can be tied into loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from mmrecur.checks import check_weight
from mmrecur.models.layers.template_bank.bank import TemplateBank
from mmrecur.registry import MODELS

#: The loss with the weight of the paper (Section 4.4).
RECURRENCE: Mapping = MappingProxyType(dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01))


@MODELS.register_module()
class RecurrenceLoss(nn.Module):
    """Negative sum of layer similarities, ``-lambda * sum_ij S_ij``.

    The recurrence regulariser of Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter
    Sharing*, ICLR 2019, https://arxiv.org/abs/1902.09701, Section 3.2. The larger lambda is, the more layers
    become equal up to a factor.

    Args:
        loss_weight (float): Factor lambda. Defaults to 0.01, the paper's value for shortest paths (Section
            4.4).

    Raises:
        ValueError: If ``loss_weight`` is not a number of at least 0.

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
            banks (Iterable[TemplateBank]): The banks whose similarities are summed.

        Returns:
            Tensor: Scalar.
        """
        return -self.loss_weight * sum(bank.similarity().sum() for bank in banks)
