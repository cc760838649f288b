"""Filter bases and the convolutions that apply one directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_int
from mmrecur.models.layers.common.low_rank import LowRankResidual
from mmrecur.models.layers.common.parallel import check_gathered, gathered, refuse_data_parallel


class FilterBasis(nn.Module):
    """A set of convolution filters, to be shared by several convolutions or added to a shared set by one.

    The module only stores the filters; :class:`BasisConv2d` and :class:`FactorizedConv2d` apply them.
    Initially the filters are orthonormal rows, or orthonormal columns if there are more filters than entries
    per filter.

    Args:
        num_filters (int): Number of filters R, the rank of the basis.
        in_channels (int): Number of input channels.
        kernel_size (int): Kernel size. Defaults to 3.
        groups (int): Number of channel groups; each filter reads the channels of one group. Defaults to 1.

    Attributes:
        weight (Parameter): Shape (num_filters, in_channels / groups, kernel_size, kernel_size).

    Raises:
        ValueError: If an argument is not a positive integer, or ``groups`` does not divide both counts.

    Example:
        >>> from mmrecur.models.layers import FilterBasis
        >>> basis = FilterBasis(48, 64)
        >>> bool((basis.matrix @ basis.matrix.T - torch.eye(48)).abs().max() < 1e-5)
        True
    """

    def __init__(self, num_filters: int, in_channels: int, kernel_size: int = 3, groups: int = 1) -> None:
        super().__init__()
        check_int('num_filters', num_filters, 1)
        check_int('in_channels', in_channels, 1)
        check_int('kernel_size', kernel_size, 1)
        check_int('groups', groups, 1)
        if in_channels % groups or num_filters % groups:
            raise ValueError(
                f'groups={groups} with in_channels={in_channels} and num_filters={num_filters}, allowed: a '
                'divisor of both'
            )
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(num_filters, in_channels // groups, kernel_size, kernel_size))
        orthogonal_init([self])

    @property
    def matrix(self) -> Tensor:
        """Tensor: The filters as rows, shape (num_filters, entries per filter). Gathers a sharded weight."""
        return gathered(self.weight).flatten(1)

    def extra_repr(self) -> str:
        return f'{tuple(self.weight.shape)}, groups={self.groups}'


@torch.no_grad()
def orthogonal_init(bases: Sequence[FilterBasis]) -> None:
    """Make all filters of the given bases orthonormal to each other, across bases too.

    Args:
        bases (Sequence[FilterBasis]): Bases whose filters have the same number of entries.
    """
    sizes = [len(basis.weight) for basis in bases]
    matrix = nn.init.orthogonal_(bases[0].matrix.new_empty(sum(sizes), bases[0].matrix.size(1)))
    for basis, rows in zip(bases, matrix.split(sizes)):
        basis.weight.copy_(rows.view_as(basis.weight))


class BasisConv2d(nn.Module):
    """A convolution that applies a basis owned by another module.

    The basis is not a submodule of the convolution. The state dict contains it once, under its owner.

    Args:
        basis (FilterBasis): The filters.
        stride (int): Stride. Defaults to 1.
        dilation (int): Dilation. Defaults to 1.
        relaxation_rank (int): Rank of the residual that this convolution adds to the filters, see
            :class:`LowRankResidual`. The basis must then have one group. Defaults to 0, no residual.

    Raises:
        ValueError: If ``relaxation_rank`` is not an integer of at least 0, or the basis has several groups.
    """

    def __init__(
        self, basis: FilterBasis, stride: int = 1, dilation: int = 1, relaxation_rank: int = 0
    ) -> None:
        super().__init__()
        check_int('relaxation_rank', relaxation_rank, 0)
        if relaxation_rank and basis.groups != 1:
            raise ValueError(
                f'relaxation_rank={relaxation_rank} with basis.groups={basis.groups}, allowed: 0 or one group'
            )
        self._basis = (basis,)  # a tuple keeps it from being registered as a submodule
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (basis.weight.size(2) // 2)
        shape = basis.weight.shape
        self.relaxation = LowRankResidual(shape, relaxation_rank) if relaxation_rank else None

    @property
    def basis(self) -> FilterBasis:
        """FilterBasis: The filters."""
        return self._basis[0]

    def filters(self) -> Tensor:
        """Return the filters that the convolution applies: the basis and the residual."""
        weight = self.basis.weight
        return weight if self.relaxation is None else self.relaxation(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the filters.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, R, H / stride, W / stride).
        """
        basis = self.basis
        check_gathered(basis.weight, x, type(self).__name__, 'the filter basis')
        return F.conv2d(x, self.filters(), None, self.stride, self.padding, self.dilation, basis.groups)

    def _replicate_for_data_parallel(self) -> NoReturn:
        refuse_data_parallel(type(self).__name__, 'the filter basis that it shares with other convolutions')

    @torch.no_grad()
    def materialise(self, form: str = 'auto') -> nn.Conv2d:
        """Return a plain convolution with a copy of the filters. ``form`` has no effect."""
        return plain_conv(self.filters(), None, self.stride, self.dilation, self.basis.groups)

    def extra_repr(self) -> str:
        return f'shared {tuple(self.basis.weight.shape)}, stride={self.stride}'


@torch.no_grad()
def plain_conv(
    weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution with copies of ``weight`` and ``bias``.

    Args:
        weight (Tensor): Filters of odd kernel size, shape (T, C / groups, K, K).
        bias (Tensor, optional): Shape (T,).
        stride (int): Stride. At stride 1 the convolution keeps the resolution. Defaults to 1.
        dilation (int): Dilation. Defaults to 1.
        groups (int): Number of groups. Defaults to 1.
    """
    size = weight.size(2)
    conv = nn.Conv2d(
        weight.size(1) * groups,
        weight.size(0),
        size,
        stride,
        padding=dilation * (size // 2),
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    conv.weight.copy_(weight)
    if bias is not None:
        conv.bias.copy_(bias)
    return conv
