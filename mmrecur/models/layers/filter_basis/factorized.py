"""Convolutions factorised into a shared basis and coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrecur.checks import check_choice, check_int
from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.parallel import check_gathered, refuse_data_parallel
from mmrecur.models.layers.filter_basis.basis import FilterBasis, plain_conv

#: Inference forms of a factorised convolution, see :meth:`FactorizedConv2d.materialise`.
INFERENCE_FORMS = ('auto', 'dense', 'factorized')

#: Largest ratio of multiply-adds, factorised to dense, at which 'auto' chooses the factorised form. It is
#: below 1 because the factorised form also writes and reads the maps between its two convolutions.
MAX_FACTORIZED_COST = 0.8


class FactorizedConv2d(nn.Module):
    r"""A convolution whose filters are combinations of a mostly shared basis.

    .. math::
        y = \alpha \, \mathrm{BN}\big([W_\text{unique}; W_\text{shared}] * x\big)

    where :math:`\alpha` is a 1x1 convolution (``coefficients``). See Kang and Kim 2021
    (https://arxiv.org/abs/2006.05066), Sections 3.1 and 3.3 and Figure 2a. There is no activation between
    basis and coefficients, so the layer equals one dense convolution in evaluation. The unique and the shared
    filters are concatenated as weights rather than as maps, which saves a copy of the maps.

    The shared basis is not a submodule, see :class:`BasisConv2d`.

    Args:
        basis (FilterBasis): The shared filters; they must have one group.
        out_channels (int): Number of output channels T.
        unique_rank (int): Number of filters that belong to this layer alone. Defaults to 0.
        stride (int): Stride. Defaults to 1.
        dilation (int): Dilation. Defaults to 1.
        norm_layer (Callable, optional): Builds the norm between basis and coefficients from a number of
            channels. None omits the norm. Defaults to ``nn.BatchNorm2d``.

    Raises:
        ValueError: If an argument is out of range.

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
        self._basis = (basis,)  # a tuple keeps it from being registered as a submodule
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
        """Return the whole basis, unique filters first, shape (R, C, kernel_size, kernel_size)."""
        shared = self.basis.weight
        return shared if self.unique is None else torch.cat([self.unique.weight, shared])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the basis, the norm and the coefficients.

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
        """Return the multiply-adds per output pixel of the forms 'dense' and 'factorized'."""
        rank, out_channels = self.coefficients.in_channels, self.coefficients.out_channels
        entries = self.basis.matrix.size(1)
        return dict(dense=out_channels * entries, factorized=rank * (entries + out_channels))

    @torch.no_grad()
    def materialise(self, form: str = 'auto') -> nn.Module:
        """Return plain convolutions that compute the same in evaluation.

        Args:
            form (str): ``'dense'``: one convolution whose filters are the products of coefficients and basis.
                ``'factorized'``: a convolution with the basis and one with the coefficients, into which the
                norm is fused. ``'auto'``: ``'factorized'`` if it needs clearly fewer multiply-adds
                (:data:`MAX_FACTORIZED_COST`), else ``'dense'``. Defaults to 'auto'.

        Returns:
            nn.Module: A convolution, or an ``nn.Sequential`` that ends in one. A norm that is not an affine
            map in evaluation (a group norm) cannot be fused. The result is then basis, norm and coefficients
            for every ``form``.

        Raises:
            ValueError: If ``form`` is unknown.
        """
        check_choice('form', form, INFERENCE_FORMS)
        filters, weight = self.filters(), self.coefficients.weight
        if self.norm is not None and not is_fusible(self.norm):
            maps = plain_conv(filters, None, self.stride, self.dilation)
            return nn.Sequential(maps, self.norm, self.coefficients)
        # double precision, so that the product of the matrices is rounded only once
        matrix, bias = weight.flatten(1).double(), None
        if self.norm is not None:
            scale, shift = norm_affine(self.norm)
            bias = (matrix @ shift.double()).to(weight)
            matrix = matrix * scale.double()
        if form == 'auto':
            cost = self.multiply_adds()
            is_cheap = cost['factorized'] <= MAX_FACTORIZED_COST * cost['dense']
            form = 'factorized' if is_cheap else 'dense'
        if form == 'dense':
            product = (matrix @ filters.flatten(1).double()).to(weight)
            return plain_conv(product.unflatten(1, filters.shape[1:]), bias, self.stride, self.dilation)
        return nn.Sequential(
            plain_conv(filters, None, self.stride, self.dilation),
            plain_conv(matrix.to(weight)[..., None, None], bias),
        )
