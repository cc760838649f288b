"""Soft parameter sharing: layers whose weights are combinations of templates from one bank.

Savarese and Maire, *Learning Implicitly Recurrent CNNs Through Parameter Sharing*, ICLR 2019,
https://arxiv.org/abs/1902.09701.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.parallel import check_gathered, gathered, refuse_data_parallel

COEFFICIENT_INITS = ('orthogonal', 'identity', 'sparse')


def layer_similarity(coefficients: Tensor) -> Tensor:
    """Layer similarity matrix, Section 3.2: ``S_ij = |<a_i, a_j>| / (|a_i| |a_j|)``.

    Args:
        coefficients (Tensor): Coefficients of each layer, shape (L, k).

    Returns:
        Tensor: Shape (L, L), values from 0 to 1.
    """
    directions = F.normalize(coefficients, dim=1)
    return (directions @ directions.t()).abs()


def initial_coefficients(num_layers: int, num_templates: int, kind: str) -> Tensor:
    """Coefficients to start from, Appendix B.

    Args:
        num_layers (int): Layers L.
        num_templates (int): Templates k.
        kind (str): ``'orthogonal'``: of the matrix of all coefficients the rows are orthonormal, or, with
            fewer templates than layers, the columns. ``'identity'``: each layer its own template.
            ``'sparse'``: normal, half of a layer's entries zero, in the mean of length 1.

    Returns:
        Tensor: Shape (L, k).

    Raises:
        ValueError: For another ``kind``, or for ``'identity'`` if L and k differ.
    """
    check_choice('coefficient_init', kind, COEFFICIENT_INITS)
    if kind == 'identity':
        if num_layers != num_templates:
            raise ValueError(
                f"coefficient_init='identity' with {num_layers} layers and {num_templates} templates, "
                "allowed: as many templates as layers, or 'orthogonal', 'sparse'"
            )
        return torch.eye(num_layers)
    coefficients = torch.empty(num_layers, num_templates)
    if kind == 'orthogonal':
        return nn.init.orthogonal_(coefficients)
    kept = num_templates - num_templates // 2
    nn.init.normal_(coefficients, std=1 / math.sqrt(kept))
    order = torch.rand(num_layers, num_templates).argsort(dim=1)
    return coefficients * (order < kept)


def check_rows(name: str, rows: Any, num_layers: int) -> None:
    """Raise unless rows tie layers as :class:`TemplateBank` wants it.

    Args:
        name (str): The argument's name, for the message.
        rows (Any): What was given.
        num_layers (int): Layers of the bank.

    Raises:
        ValueError: If ``rows`` are not integers that name rows 0, 1, ... without a gap, one a layer.
    """
    is_list = isinstance(rows, Sequence) and all(type(row) is int for row in rows)
    if not is_list or len(rows) != num_layers or set(rows) != set(range(max(rows) + 1)):
        raise ValueError(
            f'{name}={rows!r}, allowed: None or {num_layers} integers that name rows 0, 1, ... without a gap'
        )


class TemplateBank(nn.Module):
    """Weights of a group of layers of equal shape as combinations of templates, Equation 1.

    ``W_i = sum_j A_ij T_j``. All layers' weights come from one matrix product, made whenever it is asked
    for: a stage asks once per forward pass and hands the weights to its layers. Nothing is kept for the
    next pass. Averaged models, fused optimizers and whatever else writes through ``parameter.data`` change
    parameters without a trace that a kept weight could be checked by. Where that product counts, the
    inference form has plain convolutions (:meth:`TemplateConv2d.materialise`).

    The templates hang together in one tensor of a convolution weight's rank, so that a change of the
    memory format reaches them.

    Args:
        num_layers (int): Layers L that draw from the bank.
        num_templates (int): Templates k.
        weight_shape (Sequence[int]): Shape of a layer's weight, (C_out, C_in / groups, ...).
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.
        rows (Sequence[int], optional): Row of coefficients that each layer uses, where layers are tied (a
            folded network): layer i computes with ``row_scales[i]`` times that row's weight, the scale
            being negative where the sign differs. Defaults to None: a row for each layer.

    Attributes:
        templates (Parameter): Shape (k * C_out, C_in / groups, ...), template after template.
        coefficients (Parameter): Shape (L, k), or (R, k) with R rows.
        row_scales (Parameter): Shape (L,), only with ``rows``.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> bank = TemplateBank(6, 2, (64, 64, 3, 3))
        >>> weights = bank()
        >>> len(weights), tuple(weights[0].shape)
        (6, (64, 64, 3, 3))
    """

    def __init__(
        self,
        num_layers: int,
        num_templates: int,
        weight_shape: Sequence[int],
        coefficient_init: str = 'orthogonal',
        rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_int('num_layers', num_layers, 1)
        check_int('num_templates', num_templates, 1)
        self.num_layers = num_layers
        self.num_templates = num_templates
        self.weight_shape = tuple(weight_shape)
        if len(self.weight_shape) < 2 or any(type(n) is not int or n < 1 for n in self.weight_shape):
            raise ValueError(
                f'weight_shape={weight_shape!r}, allowed: integers (C_out, C_in / groups, ...) of at least 1'
            )
        if rows is not None:
            check_rows('rows', rows, num_layers)
        channels, *rest = self.weight_shape
        self.templates = nn.Parameter(torch.empty(num_templates * channels, *rest))
        # as a plain convolution of the first template's size would start
        nn.init.normal_(self.templates, std=math.sqrt(2 / (channels * math.prod(rest[1:]))))
        self._set_rows(rows)
        num_rows = num_layers if self.rows is None else max(self.rows) + 1
        initial = initial_coefficients(num_rows, num_templates, coefficient_init)
        self.coefficients = nn.Parameter(initial)

    def _set_rows(self, rows: Sequence[int] | None) -> None:
        """Tie layers."""
        self.rows = None if rows is None else tuple(rows)
        if self.rows is not None:
            self.row_scales = nn.Parameter(self.templates.new_ones(self.num_layers))

    @torch.no_grad()
    def tie(self, rows: Sequence[int], scales: Tensor, coefficients: Tensor, templates: Tensor) -> None:
        """Make the bank that of a folded network, in place.

        Args:
            rows (Sequence[int]): Row of each layer.
            scales (Tensor): Factor of each layer, shape (L,).
            coefficients (Tensor): Shape (R, k).
            templates (Tensor): Shape (k * C_out, C_in / groups, ...).

        Raises:
            ValueError: If the rows are wrong.
        """
        check_rows('rows', rows, self.num_layers)
        learns = self.templates.requires_grad  # or the bank is frozen
        self.num_templates = coefficients.size(1)
        self.coefficients = nn.Parameter(coefficients.to(self.coefficients), learns)
        self.templates = nn.Parameter(templates.to(self.templates), learns)
        self._set_rows(rows)
        self.row_scales.copy_(scales).requires_grad_(learns)

    def layer_coefficients(self) -> Tensor:
        """Coefficients that each layer computes with.

        Returns:
            Tensor: Shape (L, k).
        """
        if self.rows is None:
            return self.coefficients
        rows = self.coefficients.unbind()
        return self.row_scales.unsqueeze(1) * torch.stack([rows[row] for row in self.rows])

    def similarity(self) -> Tensor:
        """Layer similarity matrix, see :func:`layer_similarity`.

        Returns:
            Tensor: Shape (L, L).
        """
        return layer_similarity(gathered(self.layer_coefficients()))

    def forward(self) -> tuple[Tensor, ...]:
        """Weights of all layers.

        Returns:
            tuple[Tensor, ...]: For each layer a tensor of shape ``weight_shape``, in the parameters' dtype
            also under autocast: convolutions round it once, like a weight of their own.
        """
        return self._generate(self.layer_coefficients())

    def weight(self, index: int) -> Tensor:
        """Weight of one layer, for layers of a network that does not hand out the weights.

        Args:
            index (int): The layer.

        Returns:
            Tensor: Shape ``weight_shape``.
        """
        return self._generate(self.layer_coefficients()[index : index + 1])[0]

    def _generate(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        """Weights with the given coefficients, in full precision."""
        templates = self.templates
        is_tensor = isinstance(templates, Tensor)  # else a tracer's stand-in
        device = templates.device.type if is_tensor else 'meta'
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return self._product(coefficients, templates)
        with torch.autocast(device, enabled=False):
            return self._product(coefficients, templates)

    def _product(self, coefficients: Tensor, templates: Tensor) -> tuple[Tensor, ...]:
        channels, *rest = self.weight_shape
        if isinstance(templates, Tensor) and templates.dim() == 4 and not templates.is_contiguous():
            # in channels last, and so will be the weights; neither is copied
            flat = templates.permute(0, 2, 3, 1).reshape(self.num_templates, -1)
            weights = (coefficients @ flat).view(-1, channels, *rest[1:], rest[0]).permute(0, 1, 4, 2, 3)
        else:
            flat = templates.reshape(self.num_templates, -1)
            weights = (coefficients @ flat).view(-1, channels, *rest)
        return weights.unbind()

    def extra_repr(self) -> str:
        """Layers, templates and shape."""
        tied = '' if self.rows is None else f', rows={self.rows}'
        return f'{self.num_layers}, {self.num_templates}, {self.weight_shape}{tied}'


class TemplateConv2d(nn.Module):
    """Convolution whose weight comes from a bank; stride, padding, dilation and groups are its own.

    Args:
        bank (TemplateBank): The bank. It belongs to whatever registers it, not to this layer.
        index (int): Which of the bank's layers this is.
        stride (int or Sequence[int]): As in ``nn.Conv2d``. Defaults to 1.
        padding (int, Sequence[int] or str): As in ``nn.Conv2d``. Defaults to 0.
        dilation (int or Sequence[int]): As in ``nn.Conv2d``. Defaults to 1.
        groups (int): As in ``nn.Conv2d``. Defaults to 1.
        padding_mode (str): As in ``nn.Conv2d``. Defaults to 'zeros'.
        bias (Parameter, optional): The layer's own bias. Defaults to None.

    Raises:
        ValueError: If the bank's weights are not those of a 1-, 2- or 3-dimensional convolution, or it has
            no such layer.
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
        self._bank = (bank,)  # in a tuple: no submodule
        self.index = index
        channels, in_channels, *self.kernel_size = bank.weight_shape
        self.in_channels, self.out_channels = in_channels * groups, channels
        self.options = dict(
            stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
        )
        with torch.device('meta'):  # without memory: it knows how to convolve
            kind = self._CONVOLUTIONS[len(bank.weight_shape)]
            rule = kind(self.in_channels, channels, tuple(self.kernel_size), bias=False, **self.options)
        rule.weight = None
        self._rule = (rule,)
        self.bias = bias

    @property
    def template_bank(self) -> TemplateBank:
        """TemplateBank: Where the weight comes from."""
        return self._bank[0]

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Shape (N, C_in, ...).
            weight (Tensor, optional): The layer's weight if it was generated already. Defaults to None.

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
        """The plain convolution that computes the same.

        Returns:
            nn.Module: ``nn.Conv2d``, or the like of another dimension, in the same mode.
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
        """As of a convolution."""
        options = ', '.join(f'{key}={value}' for key, value in self.options.items())
        return f'{self.in_channels}, {self.out_channels}, kernel_size={tuple(self.kernel_size)}, {options}'
