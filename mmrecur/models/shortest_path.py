"""The networks that learn shortest paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmrecur.models.deployable import Deployable
from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import fuse_norm
from mmrecur.models.layers.template_bank.bank import (
    COEFFICIENT_INITS,
    TemplateBank,
    TemplateConv2d,
    check_rows,
)
from mmrecur.models.layers.template_bank.blocks import convolve, materialised
from mmrecur.models.losses.objective import OwnObjective
from mmrecur.models.losses.recurrence import RECURRENCE
from mmrecur.registry import MODELS


@MODELS.register_module()
class ShortestPathNet(OwnObjective, Deployable, BaseModel):
    """CNN, SCNN and SCNN-R of Savarese and Maire 2019, Section 4.4.

    A 1x1 convolution to 32 channels, 20 times ``x + relu(BN(conv3x3(x)))``, a 1x1 convolution to one: the
    logit of each point of the grid to be on a shortest path. In the SCNN the 3x3 convolutions draw their
    weights from one bank.

    Args:
        num_templates (int, optional): Templates of the bank; the paper's SCNN has 20, one per layer.
            Defaults to None: no bank, the plain CNN.
        num_layers (int): 3x3 convolutions. Defaults to 20.
        channels (int): Their channels. Defaults to 32.
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.
        loss_recurrence (dict, optional): Recurrence regulariser, for the paper's SCNN-R
            ``dict(type='mmrecur.RecurrenceLoss', loss_weight=0.01)``. It needs
            ``dict(type='mmrecur.AuxiliaryLossHook')`` among the config's hooks. Defaults to None.
        folding (dict, optional): ``dict(bank=ROWS)`` of a folded network. Defaults to None.
        data_preprocessor (dict, optional): As in MMEngine. Defaults to None.
        init_cfg (dict, optional): As in MMEngine. Defaults to None.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> model = ShortestPathNet(num_templates=20)
        >>> tuple(model(torch.zeros(1, 2, 32, 32)).shape)
        (1, 32, 32)
    """

    objective = 'loss_recurrence'
    objective_aim = 'the recurrence of its layers'
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
        folding: Mapping[str, Sequence[int]] | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        check_int('num_layers', num_layers, 1)
        check_int('channels', channels, 1)
        if num_templates is not None:
            check_int('num_templates', num_templates, 1, num_layers)
        if num_templates is None and (loss_recurrence is not None or folding is not None):
            raise ValueError('num_templates=None with loss_recurrence or folding, allowed: with templates')
        check_choice('coefficient_init', coefficient_init, COEFFICIENT_INITS)
        if folding is not None:
            if not isinstance(folding, Mapping) or set(folding) != {'bank'}:
                raise ValueError(f'folding={folding!r}, allowed: None or dict(bank=ROWS)')
            check_rows('folding: bank', folding['bank'], num_layers)
        self._build_objective(loss_recurrence, RECURRENCE)
        self.conv1 = nn.Conv2d(2, channels, 1)
        if num_templates is None:
            self.bank = None
            convs = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(num_layers)]
        else:
            rows = None if folding is None else folding['bank']
            most = num_templates if rows is None else min(num_templates, max(rows) + 1)
            shape = (channels, channels, 3, 3)
            self.bank = TemplateBank(num_layers, most, shape, coefficient_init, rows)
            convs = [TemplateConv2d(self.bank, i, padding=1) for i in range(num_layers)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(num_layers))
        self.conv2 = nn.Conv2d(channels, 1, 1)
        self._finish_objective()
        for conv in self.convs:
            if isinstance(conv, nn.Conv2d):  # as the templates start
                nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')

    def objective_input(self) -> list[TemplateBank]:
        """See :class:`OwnObjective`."""
        return [self.bank]

    def _switch_to_deploy(self) -> None:
        self._drop_objective()
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            self.convs[i], self.norms[i] = fuse_norm(materialised(conv), norm)
        self.bank = None

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute logits, the loss or predictions.

        Args:
            inputs (Tensor): Query points and obstacles, shape (N, 2, H, W).
            targets (Tensor, optional): Points on shortest paths, shape (N, H, W). Defaults to None.
            mode (str): ``'tensor'``, ``'loss'`` or ``'predict'``. Defaults to 'tensor'.

        Returns:
            Tensor, dict or list: Logits, shape (N, H, W); ``loss_path``, the mean binary cross-entropy; of
            each example ``prediction`` and, if given, ``target``.

        Raises:
            ValueError: If ``mode`` is another one, or ``'loss'`` without targets.
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
