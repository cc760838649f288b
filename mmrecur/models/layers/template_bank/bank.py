"""Template banks, which generate the weights of a group of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.layers.common.parallel import gathered
from mmrecur.models.layers.template_bank.coefficients import initial_coefficients, layer_similarity


def check_rows(name: str, rows: Any, num_layers: int) -> None:
    """Raise unless ``rows`` assigns a row of coefficients to each layer, see :class:`TemplateBank`.

    Args:
        name (str): Name of the argument, for the message.
        rows (Any): Value of the argument.
        num_layers (int): Number of layers of the bank.

    Raises:
        ValueError: If ``rows`` is not one integer per layer, or the integers leave out one of 0, 1, ...
    """
    is_list = isinstance(rows, Sequence) and all(type(row) is int for row in rows)
    if not is_list or len(rows) != num_layers or set(rows) != set(range(max(rows) + 1)):
        raise ValueError(
            f'{name}={rows!r}, allowed: None or {num_layers} integers that name rows 0, 1, ... without a gap'
        )


class TemplateBank(nn.Module):
    """Templates and coefficients that generate the weights of a group of layers of equal shape.

    Layer i has the weight ``W_i = sum_j A_ij T_j`` (Savarese and Maire 2019, Equation 1). One matrix product
    generates the weights of all layers. A stage calls its bank once per forward pass and hands the weights to
    its layers.

    Weights are never cached between passes, because a change of the parameters cannot be detected reliably:
    averaged models, fused optimizers and other code that writes through ``parameter.data`` leave no trace.
    Where the matrix product matters, use the inference form, which has plain convolutions
    (:meth:`TemplateConv2d.materialise`).

    The templates are concatenated into one tensor with as many dimensions as a convolution's weight, so that
    ``to(memory_format=...)`` applies to them.

    Args:
        num_layers (int): Number of layers L that share the bank.
        num_templates (int): Number of templates k.
        weight_shape (Sequence[int]): Shape of a layer's weight, (C_out, C_in / groups, ...).
        coefficient_init (str): See :func:`initial_coefficients`. Defaults to 'orthogonal'.
        rows (Sequence[int], optional): Ties layers: the index of the row of coefficients that each layer
            uses. Layer i then has the weight of row ``rows[i]``, multiplied by ``row_scales[i]``. Defaults to
            None, a row for each layer.

    Attributes:
        templates (Parameter): Shape (k * C_out, C_in / groups, ...), one template after the other.
        coefficients (Parameter): A, shape (L, k), or (R, k) for tied layers with R distinct rows.
        row_scales (Parameter): Factor of each layer, shape (L,); it exists only if layers are tied.

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
        # Kaiming normal (fan out) for the shape of one template, not for the concatenated tensor
        nn.init.normal_(self.templates, std=math.sqrt(2 / (channels * math.prod(rest[1:]))))
        self._set_rows(rows)
        num_rows = num_layers if self.rows is None else max(self.rows) + 1
        initial = initial_coefficients(num_rows, num_templates, coefficient_init)
        self.coefficients = nn.Parameter(initial)

    def _set_rows(self, rows: Sequence[int] | None) -> None:
        self.rows = None if rows is None else tuple(rows)
        if self.rows is not None:
            self.row_scales = nn.Parameter(self.templates.new_ones(self.num_layers))

    @torch.no_grad()
    def tie(self, rows: Sequence[int], scales: Tensor, coefficients: Tensor, templates: Tensor) -> None:
        """Tie layers and replace the parameters, in place. A frozen bank stays frozen.

        Args:
            rows (Sequence[int]): Row of coefficients of each layer.
            scales (Tensor): Factor of each layer, shape (L,).
            coefficients (Tensor): New coefficients, shape (R, k).
            templates (Tensor): New templates, shape (k * C_out, C_in / groups, ...).

        Raises:
            ValueError: If ``rows`` is wrong.
        """
        check_rows('rows', rows, self.num_layers)
        requires_grad = self.templates.requires_grad
        self.num_templates = coefficients.size(1)
        self.coefficients = nn.Parameter(coefficients.to(self.coefficients), requires_grad)
        self.templates = nn.Parameter(templates.to(self.templates), requires_grad)
        self._set_rows(rows)
        self.row_scales.copy_(scales).requires_grad_(requires_grad)

    def layer_coefficients(self) -> Tensor:
        """Return the coefficients of each layer, including its scale if layers are tied, shape (L, k)."""
        if self.rows is None:
            return self.coefficients
        rows = self.coefficients.unbind()
        return self.row_scales.unsqueeze(1) * torch.stack([rows[row] for row in self.rows])

    def similarity(self) -> Tensor:
        """Return the layer similarity matrix, shape (L, L), see :func:`layer_similarity`."""
        return layer_similarity(gathered(self.layer_coefficients()))

    def forward(self) -> tuple[Tensor, ...]:
        """Generate the weights of all layers.

        Returns:
            tuple[Tensor, ...]: One tensor of shape ``weight_shape`` per layer. They have the dtype of the
            parameters even under autocast: the convolutions round them once, like any other weight.
        """
        return self._generate(self.layer_coefficients())

    def weight(self, index: int) -> Tensor:
        """Generate the weight of one layer, for networks that do not hand out the weights of :meth:`forward`.

        Args:
            index (int): Index of the layer.

        Returns:
            Tensor: Shape ``weight_shape``.
        """
        return self._generate(self.layer_coefficients()[index : index + 1])[0]

    def _generate(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        """Generate one weight per row of ``coefficients``, outside autocast."""
        templates = self.templates
        is_tensor = isinstance(templates, Tensor)  # torch.fx passes proxies
        device = templates.device.type if is_tensor else 'meta'
        if device == 'meta' or not torch.is_autocast_enabled(device):
            return self._product(coefficients, templates)
        with torch.autocast(device, enabled=False):
            return self._product(coefficients, templates)

    def _product(self, coefficients: Tensor, templates: Tensor) -> tuple[Tensor, ...]:
        channels, *rest = self.weight_shape
        if isinstance(templates, Tensor) and templates.dim() == 4 and not templates.is_contiguous():
            # channels last: permuting around the product keeps the layout without a copy
            flat = templates.permute(0, 2, 3, 1).reshape(self.num_templates, -1)
            weights = (coefficients @ flat).view(-1, channels, *rest[1:], rest[0]).permute(0, 1, 4, 2, 3)
        else:
            flat = templates.reshape(self.num_templates, -1)
            weights = (coefficients @ flat).view(-1, channels, *rest)
        return weights.unbind()

    def extra_repr(self) -> str:
        tied = '' if self.rows is None else f', rows={self.rows}'
        return f'{self.num_layers}, {self.num_templates}, {self.weight_shape}{tied}'


def template_banks(module: nn.Module) -> dict[str, TemplateBank]:
    """Return the template banks of a network by name, in order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, TemplateBank)}


def check_banks(state_dict: Mapping[str, Tensor], banks: Mapping[str, TemplateBank]) -> None:
    """Raise unless a state dict holds the parameters of all given banks.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of a model.
        banks (Mapping[str, TemplateBank]): The banks by their names in the model.

    Raises:
        ValueError: If a parameter is missing or has another shape.
    """
    for name, bank in banks.items():
        for parameter_name, parameter in bank.named_parameters():
            key, expected = f'{name}.{parameter_name}', tuple(parameter.shape)
            found = tuple(state_dict[key].shape) if key in state_dict else 'nothing'
            if found != expected:
                raise ValueError(
                    f'state_dict has {found} for {key}, allowed: the weights of the model, here of shape '
                    f'{expected}'
                )
