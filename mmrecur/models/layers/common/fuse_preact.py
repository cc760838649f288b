"""Fusing a norm and a ReLU into the pointwise convolutions after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrecur.models.layers.common.fuse import is_fusible, norm_affine
from mmrecur.models.layers.common.modes import generators_kept

#: A channel whose norm does not change its sign within +-_REACH counts as linear or as zero. This keeps the
#: bounds and the products with them within the range of half precision.
_REACH = 2.0**15


class ChannelClamp(nn.Module):
    """Clamps each channel to its own bounds.

    Args:
        lower (Tensor): Lower bounds, shape (C,), -inf for none.
        upper (Tensor): Upper bounds, shape (C,), inf for none.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.lower = nn.Parameter(lower.view(-1, 1, 1).clone())
        self.upper = nn.Parameter(upper.view(-1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x``, shape (N, C, H, W)."""
        return torch.clamp(x, self.lower, self.upper)


def fuse_preactivation(
    norm: nn.Module, convs: Sequence[nn.Conv2d]
) -> tuple[ChannelClamp, list[nn.Conv2d]] | None:
    r"""Fuse a norm and a ReLU into the 1x1 convolutions that read them.

    In evaluation the norm is ``g x + b`` for each channel. Where ``g > 0``

    .. math:: \mathrm{relu}(g x + b) = g \max(x, -b / g) + b,

    and with a minimum where ``g < 0``. The factor and the summand go into the convolutions. A clamp remains,
    which takes one pass over memory. Average pooling may stand between the ReLU and the convolutions.

    Args:
        norm (nn.Module): The norm.
        convs (Sequence[nn.Conv2d]): 1x1 convolutions of the output of the ReLU, without padding.

    Returns:
        tuple[ChannelClamp, list[nn.Conv2d]], optional: Replacement of norm and ReLU, and the
        convolutions with bias. None if the norm cannot be fused.
    """
    if not is_fusible(norm):
        return None
    scale, shift = norm_affine(norm)
    turns = shift.abs() < _REACH * scale.abs()
    bound = -shift / torch.where(turns, scale, torch.ones_like(scale))
    inf = torch.full_like(bound, torch.inf)
    clamp = ChannelClamp(
        torch.where(turns & (scale > 0), bound, -inf), torch.where(turns & (scale < 0), bound, inf)
    )
    passes = turns | (shift > 0)
    scale, shift = scale * passes, shift * passes
    return clamp, [_with_input_affine(conv, scale, shift) for conv in convs]


def _with_input_affine(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """Return the convolution of ``scale * x + shift`` as a convolution of ``x``."""
    with generators_kept():
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride, device=conv.weight.device)
    fused.to(conv.weight.dtype).train(conv.training)
    weight = conv.weight.data
    # in double precision, because sums with bounds far from zero cancel
    bias = torch.mv(weight.flatten(1).double(), shift.double())
    bias = bias if conv.bias is None else bias + conv.bias.data
    fused.weight.data.copy_(weight * scale.view(1, -1, 1, 1))
    fused.bias.data.copy_(bias)
    return fused
