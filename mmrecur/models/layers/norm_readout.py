"""A batch norm and a 1x1 convolution that reads its output, without keeping that output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def norm_readout(norm: nn.Module, readout: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Compute ``y = norm(x)`` and ``readout(y)`` so that ``y`` may be overwritten afterwards.

    A convolution keeps its input for the gradient of its weight, so a residual that one reads cannot
    take the shortcut in place as a plain ResNet's does. But ``y`` is an affine map of ``x``, which the
    norm keeps anyway: with ``y = a x + b`` the gradient of the weight is ``(g x^T) a + (sum g) b``.

    Args:
        norm (nn.Module): Norm of x.
        readout (nn.Module): Reads ``y``.
        x (Tensor): Shape (N, C, H, W).

    Returns:
        tuple[Tensor, Tensor], optional: ``y`` and ``readout(y)``; None where this form does not apply or
        brings nothing: outside training on a CPU in one precision, for other norms than plain batch
        norm with statistics, with hooks, under compilation and tracing. It has no second derivative.
    """
    if not takes_own_backward(norm, readout, x):
        return None
    batch_statistics = norm.training or norm.running_mean is None
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if momentum is None:  # a cumulative average
        momentum = 1.0 / max(norm.num_batches_tracked.item(), 1)
    return _NormReadout.apply(
        x,
        norm.weight,
        norm.bias,
        readout.weight,
        norm.running_mean,
        norm.running_var,
        batch_statistics,
        momentum,
        norm.eps,
    )


def takes_own_backward(norm: nn.Module, conv: nn.Module, x: Tensor) -> bool:
    """Whether a norm and a 1x1 convolution of its output may be differentiated by hand.

    Args:
        norm (nn.Module): Norm of x.
        conv (nn.Module): Convolution of what it gives.
        x (Tensor): Shape (N, C, H, W).

    Returns:
        bool: True for a plain batch norm with statistics and a 1x1 convolution without bias and hooks,
        when gradients are recorded on a CPU in one precision, not compiled and not traced.
    """
    # the type check comes first: stand-ins of tracers are not to be asked further
    if type(x) is not Tensor or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.device.type != 'cpu' or torch.is_autocast_enabled('cpu') or torch.jit.is_tracing():
        return False
    if type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d or norm.weight is None:
        return False
    if not x.dtype == norm.weight.dtype == conv.weight.dtype in (torch.float32, torch.float64):
        return False
    if not _is_pointwise(conv) or _has_hooks(norm) or _has_hooks(conv):
        return False
    return norm.track_running_stats and x.numel() != x.size(1)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return shape == ((1, 1), (1, 1), (0, 0), 1) and conv.bias is None


def _has_hooks(module: nn.Module) -> bool:
    # a call of the module would run them; gradients of its maps are seen by hooks of the backward pass
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class _NormReadout(torch.autograd.Function):
    """See :func:`norm_readout`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        readout: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        batch_statistics: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        y, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, batch_statistics, momentum, eps
        )
        # copies: batches that follow move the running statistics on before backward may run
        if not batch_statistics:
            mean, inverse_std = running_mean.clone(), torch.rsqrt(running_var + eps)
        ctx.save_for_backward(x, weight, bias, readout, mean, inverse_std)
        ctx.batch_statistics, ctx.eps = batch_statistics, eps
        return y, F.conv2d(y, readout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, readout, mean, inverse_std = ctx.saved_tensors
        scale = weight * inverse_std
        # Of its input, the gradient of a convolution's input depends on the shape alone: x will do.
        grad, against_x, _ = torch.ops.aten.convolution_backward(
            grad_read, x, readout, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        total = grad_read.sum((0, 2, 3)).view(-1, 1, 1, 1)
        grad_readout = against_x * scale.view(1, -1, 1, 1)
        grad_readout += total * (bias - mean * scale).view(1, -1, 1, 1)
        grad += grad_y
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, inverse_std.pow(-2) - ctx.eps, mean, inverse_std,
            ctx.batch_statistics, ctx.eps, list(ctx.needs_input_grad[:3]),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias, grad_readout, None, None, None, None, None
