"""Convolutions that take their weights from a template bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.layers.common.parallel import check_gathered, refuse_data_parallel
from mmrecur.models.layers.template_bank.bank import TemplateBank


class TemplateConv2d(nn.Module):
    """A convolution that takes its weight from a template bank.

    Stride, padding, dilation, groups and bias are its own. Despite its name it also does 1- and 3-dimensional
    convolutions, depending on the shape of the bank's weights. The bank is not a submodule; it belongs to the
    module that registers it.

    Args:
        bank (TemplateBank): The bank.
        index (int): Index of this layer among the layers of the bank.
        stride (int or Sequence[int]): See ``nn.Conv2d``. Defaults to 1.
        padding (int, Sequence[int] or str): See ``nn.Conv2d``. Defaults to 0.
        dilation (int or Sequence[int]): See ``nn.Conv2d``. Defaults to 1.
        groups (int): See ``nn.Conv2d``. Defaults to 1.
        padding_mode (str): See ``nn.Conv2d``. Defaults to 'zeros'.
        bias (Parameter, optional): Bias of the layer. Defaults to None.

    Raises:
        ValueError: If the bank's weights do not have 3, 4 or 5 dimensions, or ``index`` is out of range.
    """

    _CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}

    def __init__(
        self,
        bank: TemplateBank,
        index: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = 'zeros',
        bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        if len(bank.weight_shape) not in self._CONVOLUTIONS:
            raise ValueError(
                f'bank with weight_shape={bank.weight_shape}, allowed: 3, 4 or 5 sizes, as of a convolution'
            )
        check_int('index', index, 0, bank.num_layers - 1)
        self._bank = (bank,)  # a tuple keeps it from being registered as a submodule
        self.index = index
        channels, in_channels, *self.kernel_size = bank.weight_shape
        self.in_channels, self.out_channels = in_channels * groups, channels
        self.options = dict(
            stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
        )
        # a convolution without a weight; only its padding and convolution code is used
        with torch.device('meta'):
            kind = self._CONVOLUTIONS[len(bank.weight_shape)]
            rule = kind(self.in_channels, channels, tuple(self.kernel_size), bias=False, **self.options)
        rule.weight = None
        self._rule = (rule,)
        self.bias = bias

    @property
    def template_bank(self) -> TemplateBank:
        """TemplateBank: The bank."""
        return self._bank[0]

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Apply the convolution.

        Args:
            x (Tensor): Shape (N, C_in, ...).
            weight (Tensor, optional): The layer's weight, if the bank has generated it already. Defaults to
                None: the layer asks the bank for it.

        Returns:
            Tensor: Shape (N, C_out, ...).
        """
        weight = self.template_bank.weight(self.index) if weight is None else weight
        check_gathered(weight, x, type(self).__name__, 'the template bank')
        return self._rule[0]._conv_forward(x, weight, self.bias)

    def _replicate_for_data_parallel(self) -> NoReturn:
        refuse_data_parallel(type(self).__name__, 'the template bank that it draws its weight from')

    @torch.no_grad()
    def materialise(self) -> nn.Module:
        """Return a plain convolution with a copy of the generated weight, in the same training mode.

        Returns:
            nn.Module: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
        """
        weight = self.template_bank.weight(self.index)
        kind, has_bias = type(self._rule[0]), self.bias is not None
        with torch.device(weight.device):
            conv = kind(
                self.in_channels, self.out_channels, tuple(self.kernel_size), bias=has_bias, **self.options
            )
        conv.weight = nn.Parameter(weight.clone(), requires_grad=self.template_bank.templates.requires_grad)
        conv.bias = self.bias
        return conv.train(self.training)

    def extra_repr(self) -> str:
        options = ', '.join(f'{key}={value}' for key, value in self.options.items())
        return f'{self.in_channels}, {self.out_channels}, kernel_size={tuple(self.kernel_size)}, {options}'


def convolve(conv: nn.Module, x: Tensor, weight: Tensor | None) -> Tensor:
    """Apply a convolution, with the given weight if it is a :class:`TemplateConv2d`."""
    return conv(x, weight) if isinstance(conv, TemplateConv2d) else conv(x)


def materialised(conv: nn.Module) -> nn.Module:
    """Return a plain convolution: the materialised one of a :class:`TemplateConv2d`, else ``conv`` itself."""
    return conv.materialise() if isinstance(conv, TemplateConv2d) else conv
