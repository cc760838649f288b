"""Filter bases that several convolutions share, and convolutions made of them.

Kang and Kim, *Deeply Shared Filter Bases for Parameter-Efficient Convolutional Neural Networks*, NeurIPS
2021, https://arxiv.org/abs/2006.05066, Section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.models.layers.common.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.parallel import check_gathered, gathered, refuse_data_parallel

#: Inference forms of a factorised convolution.
DEPLOY_FORMS = ('auto', 'dense', 'factorized')

#: A factorised pair writes and reads its basis' maps in addition to what one dense convolution does.
#: It is taken if it needs at most this share of the dense one's multiply-adds.
PAIR_PAYS_BELOW = 0.8


class FilterBasis(nn.Module):
    """Filters that convolutions share, or that one convolution adds to shared ones.

    It only holds them; :class:`BasisConv2d` and :class:`FactorizedConv2d` apply them. They start with
    orthonormal rows (columns, where there are more filters than entries in one).

    Args:
        num_filters (int): Filters R, the rank of the basis.
        in_channels (int): Channels of what they are applied to.
        kernel_size (int): Their size. Defaults to 3.
        groups (int): Groups of channels; a filter sees those of one. Defaults to 1.

    Attributes:
        weight (Tensor): Shape (num_filters, in_channels / groups, kernel_size, kernel_size).

    Raises:
        ValueError: If a count is not a positive integer or the groups do not divide the channels.

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
        """Tensor: The filters as rows, shape (num_filters, entries of a filter); gathered if sharded."""
        return gathered(self.weight).flatten(1)

    def extra_repr(self) -> str:
        """Shape for ``repr``."""
        return f'{tuple(self.weight.shape)}, groups={self.groups}'


@torch.no_grad()
def orthogonal_init(bases: Sequence[FilterBasis]) -> None:
    """Make the rows of bases orthonormal, those of one to those of another too.

    Args:
        bases (Sequence[FilterBasis]): Bases with filters of one shape.
    """
    sizes = [len(basis.weight) for basis in bases]
    matrix = nn.init.orthogonal_(bases[0].matrix.new_empty(sum(sizes), bases[0].matrix.size(1)))
    for basis, rows in zip(bases, matrix.split(sizes)):
        basis.weight.copy_(rows.view_as(basis.weight))


def orthogonality_penalty(matrix: Tensor) -> Tensor:
    r"""How far rows are from orthonormal: :math:`\|B B^T - I\|_F^2`, equation 7 of the paper.

    Autocast leaves it alone: in half precision the deviations of a basis that is nearly orthonormal would be
    lost in rounding.

    Args:
        matrix (Tensor): B, shape (R, K). With R > K the penalty is at least R - K.

    Returns:
        Tensor: A scalar of the matrix' dtype.

    Example:
        >>> orthogonality_penalty(2 * torch.eye(3))
        tensor(27.)
    """
    device = matrix.device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return _squared_deviation(matrix)
    with torch.autocast(device, enabled=False):
        return _squared_deviation(matrix)


def _squared_deviation(matrix: Tensor) -> Tensor:
    # With more rows than columns the other Gram matrix is smaller. Its penalty has the same gradient and is
    # less by the number of rows that cannot be orthonormal.
    surplus = max(matrix.size(0) - matrix.size(1), 0)
    rows = matrix.T if surplus else matrix
    identity = torch.eye(rows.size(0), dtype=matrix.dtype, device=matrix.device)
    return (rows @ rows.T - identity).square().sum() + surplus


class BasisConv2d(nn.Module):
    """A convolution whose filters are a basis that another module owns.

    The basis is not registered here: it stands once in a state dict, where its owner is.

    Args:
        basis (FilterBasis): The filters.
        stride (int): Stride. Defaults to 1.
        dilation (int): Dilation. Defaults to 1.
    """

    def __init__(self, basis: FilterBasis, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self._basis = (basis,)  # in a tuple, so that it is no child
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (basis.weight.size(2) // 2)

    @property
    def basis(self) -> FilterBasis:
        """FilterBasis: The filters."""
        return self._basis[0]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, R, H / stride, W / stride).
        """
        basis = self.basis
        check_gathered(basis.weight, x, type(self).__name__, 'the filter basis')
        return F.conv2d(x, basis.weight, None, self.stride, self.padding, self.dilation, basis.groups)

    def _replicate_for_data_parallel(self) -> NoReturn:
        refuse_data_parallel(type(self).__name__, 'the filter basis that it shares with other convolutions')

    def deployed(self, form: str = 'auto') -> nn.Conv2d:
        """A plain convolution with a copy of the filters, into which a norm can be folded."""
        return _conv(self.basis.weight, None, self.stride, self.dilation, self.basis.groups)

    def extra_repr(self) -> str:
        """Shape for ``repr``."""
        return f'shared {tuple(self.basis.weight.shape)}, stride={self.stride}'


class FactorizedConv2d(nn.Module):
    r"""A convolution with filters from the span of a basis, part of which is shared.

    .. math::
        y = \alpha \, \mathrm{BN}\big([W_\text{unique}; W_\text{shared}] * x\big)

    with :math:`\alpha` a 1x1 convolution (``coefficients``), Sections 3.1 and 3.3, Figure 2a. Nothing
    non-linear stands between basis and coefficients, so in evaluation this is one dense convolution. The
    two parts of the basis are joined as weights: their maps come out of one convolution, nothing is
    copied. The shared basis is not registered here, see :class:`BasisConv2d`.

    Args:
        basis (FilterBasis): The shared filters, one group.
        out_channels (int): Channels T of the output.
        unique_rank (int): Filters of its own, 0 for none. Defaults to 0.
        stride (int): Stride. Defaults to 1.
        dilation (int): Dilation. Defaults to 1.
        norm_layer (Callable, optional): Builds the norm between basis and coefficients from a channel
            count; None for no norm there. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If a count is out of range.

    Example:
        >>> import torch
        >>> from mmrecur.models.layers import FactorizedConv2d, FilterBasis
        >>> basis = FilterBasis(48, 64)
        >>> first, second = (FactorizedConv2d(basis, 64, unique_rank=1) for _ in range(2))
        >>> second(first(torch.rand(2, 64, 8, 8))).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        basis: FilterBasis,
        out_channels: int,
        unique_rank: int = 0,
        stride: int = 1,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_int('out_channels', out_channels, 1)
        check_int('unique_rank', unique_rank, 0)
        check_choice('basis.groups', basis.groups, [1])
        shared_rank, in_channels, size, _ = basis.weight.shape
        rank = shared_rank + unique_rank
        self._basis = (basis,)  # in a tuple, so that it is no child
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (size // 2)
        self.unique = FilterBasis(unique_rank, in_channels, size) if unique_rank else None
        self.norm = None if norm_layer is None else norm_layer(rank)
        self.coefficients = nn.Conv2d(rank, out_channels, 1, bias=False)

    @property
    def basis(self) -> FilterBasis:
        """FilterBasis: The shared filters."""
        return self._basis[0]

    def filters(self) -> Tensor:
        """Tensor: The whole basis, unique filters first, shape (R, C, kernel_size, kernel_size)."""
        shared = self.basis.weight
        return shared if self.unique is None else torch.cat([self.unique.weight, shared])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Shape (N, out_channels, H / stride, W / stride).
        """
        for basis in (self.basis, *([] if self.unique is None else [self.unique])):
            check_gathered(basis.weight, x, type(self).__name__, 'the filter basis')
        maps = F.conv2d(x, self.filters(), None, self.stride, self.padding, self.dilation)
        return self.coefficients(maps if self.norm is None else self.norm(maps))

    def _replicate_for_data_parallel(self) -> NoReturn:
        refuse_data_parallel(type(self).__name__, 'the filter basis that it shares with other convolutions')

    def multiply_adds(self) -> dict[str, int]:
        """Multiply-adds per pixel of the output, of the two inference forms."""
        rank, out_channels = self.coefficients.in_channels, self.coefficients.out_channels
        entries = self.basis.matrix.size(1)
        return dict(dense=out_channels * entries, factorized=rank * (entries + out_channels))

    @torch.no_grad()
    def deployed(self, form: str = 'auto') -> nn.Module:
        """The inference form.

        Args:
            form (str): ``'dense'``, one convolution with the products of basis and coefficients as
                filters; ``'factorized'``, basis and coefficients with the norm folded; ``'auto'``, the
                second if it needs clearly fewer multiply-adds (:data:`PAIR_PAYS_BELOW`). Defaults to
                'auto'.

        Returns:
            nn.Module: A convolution, or a sequence that ends in one, both with bias where a norm was
            folded. A norm that is no affine map in evaluation stays, in a sequence.
        """
        check_choice('form', form, DEPLOY_FORMS)
        filters, weight = self.filters(), self.coefficients.weight
        if self.norm is not None and not is_fusible(self.norm):
            maps = _conv(filters, None, self.stride, self.dilation)
            return nn.Sequential(maps, self.norm, self.coefficients)
        # in double precision: the product of two folded matrices is rounded once
        matrix, bias = weight.flatten(1).double(), None
        if self.norm is not None:
            scale, shift = norm_affine(self.norm)
            bias = (matrix @ shift.double()).to(weight)
            matrix = matrix * scale.double()
        if form == 'auto':
            work = self.multiply_adds()
            pays = work['factorized'] <= PAIR_PAYS_BELOW * work['dense']
            form = 'factorized' if pays else 'dense'
        if form == 'dense':
            product = (matrix @ filters.flatten(1).double()).to(weight)
            return _conv(product.unflatten(1, filters.shape[1:]), bias, self.stride, self.dilation)
        return nn.Sequential(
            _conv(filters, None, self.stride, self.dilation),
            _conv(matrix.to(weight)[..., None, None], bias),
        )


@torch.no_grad()
def _conv(
    weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution of odd size, padded to keep the resolution at stride 1, with copies of weights."""
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
