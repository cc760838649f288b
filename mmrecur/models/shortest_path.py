"""Networks that learn to find shortest paths on grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.deployable import Deployable
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.template_bank import COEFFICIENT_INITS, TemplateBank, TemplateConv2d, check_rows
from mmrecur.models.layers.template_bank.conv import convolve, materialised
from mmrecur.models.losses.auxiliary import AuxiliaryObjective
from mmrecur.models.losses.recurrence import RECURRENCE
from mmrecur.registry import MODELS


@MODELS.register_module()
class ShortestPathNet(AuxiliaryObjective, Deployable, BaseModel):
    """CNN, SCNN and SCNN-R of Savarese and Maire 2019 (https://arxiv.org/abs/1902.09701), Section 4.4.

    The network marks the grid points that lie on a shortest path. It consists of a 1x1 convolution to 32
    channels, 20 layers ``x + relu(BN(conv3x3(x)))``, and a 1x1 convolution to one logit per grid point. In
    the SCNN, the 3x3 convolutions share one template bank. The SCNN-R is the SCNN with the recurrence loss.

    Args:
        num_templates (int, optional): Number of templates in the bank. The paper's SCNN has 20, one per
            layer. Defaults to None, which builds the plain CNN without a bank.
        num_layers (int): Number of 3x3 convolutions. Defaults to 20.
        channels (int): Number of channels of the 3x3 convolutions. Defaults to 32.
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.
        loss_recurrence (dict, optional): Auxiliary loss that makes layers similar. The SCNN-R uses
            ``dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01)``. The loss needs
            ``custom_hooks=[dict(type='mmrecur.AuxiliaryLossHook')]``. Defaults to None.
        tied_layers (dict, optional): ``dict(bank=ROWS)`` ties layers. ROWS contains the row of coefficients
            that each layer uses, see :class:`TemplateBank`. Defaults to None.
        data_preprocessor (dict, optional): See MMEngine's ``BaseModel``. Defaults to None.
        init_cfg (dict, optional): See MMEngine's ``BaseModule``. Defaults to None.

    Raises:
        ValueError: If an argument has a value that is not allowed.

    Example:
        >>> model = ShortestPathNet(num_templates=20)
        >>> tuple(model(torch.zeros(1, 2, 32, 32)).shape)
        (1, 32, 32)
    """

    loss_name = 'loss_recurrence'
    loss_purpose = 'the recurrence of its layers'
    required_paramwise_cfg: dict = dict(
        custom_keys={'coefficients': dict(decay_mult=0.0), 'row_scales': dict(decay_mult=0.0)}
    )

    def __init__(
        self,
        num_templates: int | None = None,
        num_layers: int = 20,
        channels: int = 32,
        coefficient_init: str = 'orthogonal',
        loss_recurrence: dict | None = None,
        tied_layers: Mapping[str, Sequence[int]] | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        check_int('num_layers', num_layers, 1)
        check_int('channels', channels, 1)
        if num_templates is not None:
            check_int('num_templates', num_templates, 1, num_layers)
        if num_templates is None and (loss_recurrence is not None or tied_layers is not None):
            raise ValueError(
                'num_templates=None with loss_recurrence or tied_layers, allowed: None for both, or a number '
                'of templates'
            )
        check_choice('coefficient_init', coefficient_init, COEFFICIENT_INITS)
        if tied_layers is not None:
            if not isinstance(tied_layers, Mapping) or set(tied_layers) != {'bank'}:
                raise ValueError(f'tied_layers={tied_layers!r}, allowed: None or dict(bank=ROWS)')
            check_rows('tied_layers: bank', tied_layers['bank'], num_layers)
        self._build_objective(loss_recurrence, RECURRENCE)
        self.conv1 = nn.Conv2d(2, channels, 1)
        if num_templates is None:
            self.bank = None
            convs = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(num_layers)]
        else:
            rows = None if tied_layers is None else tied_layers['bank']
            most = num_templates if rows is None else min(num_templates, max(rows) + 1)
            shape = (channels, channels, 3, 3)
            self.bank = TemplateBank(num_layers, most, shape, coefficient_init, rows)
            convs = [TemplateConv2d(self.bank, i, padding=1) for i in range(num_layers)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_layers))
        self.conv2 = nn.Conv2d(channels, 1, 1)
        self._finish_objective()
        for conv in self.convs:
            if isinstance(conv, nn.Conv2d):  # initialised like the templates of a bank
                nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')

    def objective_input(self) -> list[TemplateBank]:
        """Return a list of the bank, whose layers the recurrence loss compares."""
        return [self.bank]

    def _switch_to_deploy(self) -> None:
        self._drop_objective()
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            self.convs[i], self.norms[i] = fuse_norm(materialised(conv), norm)
        self.bank = None

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute logits, the loss or predictions, depending on ``mode``.

        Args:
            inputs (Tensor): Shape (N, 2, H, W). The first channel marks the end points, the second the
                obstacles.
            targets (Tensor, optional): 1 for points on a shortest path, else 0, shape (N, H, W). Defaults to
                None.
            mode (str): ``'tensor'``, ``'loss'`` or ``'predict'``. Defaults to 'tensor'.

        Returns:
            Tensor, dict or list: For ``'tensor'`` the logits, shape (N, H, W). For ``'loss'`` a dict with
            ``loss_path``, the mean binary cross-entropy. For ``'predict'`` a dict for each example with
            ``prediction`` and, if ``targets`` is given, ``target``, each of shape (H, W).

        Raises:
            ValueError: If ``mode`` is unknown, or it is ``'loss'`` and ``targets`` is None.
        """
        check_choice('mode', mode, ('tensor', 'loss', 'predict'))
        if mode == 'loss' and targets is None:
            raise ValueError("targets=None with mode='loss', allowed: a tensor of shape (N, H, W)")
        x = self.conv1(inputs)
        weights = [None] * len(self.convs) if self.bank is None else self.bank()
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = x + torch.relu(norm(convolve(conv, x, weights[i])))
        logits = self.conv2(x).squeeze(1)
        if mode == 'loss':
            return dict(loss_path=F.binary_cross_entropy_with_logits(logits.float(), targets))
        if mode == 'predict':
            predictions = [dict(prediction=prediction) for prediction in logits > 0]
            for sample, target in zip(predictions, () if targets is None else targets):
                sample['target'] = target
            return predictions
        return logits
