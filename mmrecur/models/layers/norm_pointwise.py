"""A batch norm and the 1x1 convolution behind it, without the map between them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .norm_readout import takes_own_backward


def norm_pointwise(norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    r"""Compute ``conv(norm(x))``.

    In training on a CPU the normalised map is neither written nor kept: with the norm's scale a and shift
    b, ``conv(a x + b)`` is a 1x1 convolution of x with the weights ``W a`` and the bias ``W b``. The sums
    that the norm's gradient takes over all pixels follow from the gradient of these weights, so the
    backward pass reads x twice only.

    Args:
        norm (nn.Module): Norm of x.
        conv (nn.Module): 1x1 convolution.
        x (Tensor): Shape (N, C, H, W).

    Returns:
        Tensor: Shape (N, C_out, H, W). Where the short form was taken it has no second derivative.
    """
    if not takes_own_backward(norm, conv, x):
        return conv(norm(x))
    if not norm.training:  # an affine map of x
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        matrix = conv.weight.flatten(1)
        return F.conv2d(
            x, (matrix * scale)[..., None, None], matrix @ (norm.bias - norm.running_mean * scale)
        )
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if momentum is None:  # a cumulative average
        momentum = 1.0 / max(norm.num_batches_tracked.item(), 1)
    return _NormPointwise.apply(
        x, norm.weight, norm.bias, conv.weight, norm.running_mean, norm.running_var, momentum, norm.eps
    )


class _NormPointwise(torch.autograd.Function):
    """See :func:`norm_pointwise`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        coefficients: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, var = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
        inverse_std = torch.rsqrt(var + eps)
        scale = weight * inverse_std
        matrix = coefficients.flatten(1)
        folded = (matrix * scale)[..., None, None]
        ctx.save_for_backward(x, weight, bias, coefficients, mean, inverse_std)
        return F.conv2d(x, folded, matrix @ (bias - mean * scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, coefficients, mean, inverse_std = ctx.saved_tensors
        matrix = coefficients.flatten(1)
        scale = weight * inverse_std
        folded = (matrix * scale)[..., None, None]
        grad_x, against_x, total = torch.ops.aten.convolution_backward(
            grad, x, folded, [len(matrix)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]
        )
        # sums over the pixels of g x^T and g xhat^T, xhat the normalised x
        against = (against_x.flatten(1) - total[:, None] * mean) * inverse_std
        # and from them those of the norm's output gradient W^T g, alone and times xhat
        plain, times = matrix.T @ total, (matrix * against).sum(0)
        # gradient through the statistics: -scale (mean(W^T g) + xhat mean(W^T g xhat)), affine in x
        pixels = x.numel() // x.size(1)
        slope = -scale * inverse_std * times / pixels
        constant = -scale * plain / pixels - slope * mean
        grad_x.addcmul_(x, slope.view(1, -1, 1, 1)).add_(constant.view(1, -1, 1, 1))
        grad_coefficients = (against * weight + total[:, None] * bias).view_as(coefficients)
        return grad_x, times, plain, grad_coefficients, None, None, None, None
