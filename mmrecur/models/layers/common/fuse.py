"""Fusing batch norms into the convolutions before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def is_fusible(norm: nn.Module) -> bool:
    """Return whether a norm is a batch norm with running statistics, hence affine in evaluation."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def norm_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift that a batch norm applies in evaluation.

    Args:
        norm (_BatchNorm): Norm with running statistics.

    Returns:
        tuple[Tensor, Tensor]: ``scale`` and ``shift`` of shape (C,). The norm computes
        ``scale * x + shift``.
    """
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale, shift


def fuse_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """Fuse a norm into the convolution before it, if the norm allows it.

    Args:
        conv (nn.Conv2d): The convolution.
        norm (nn.Module): The norm that follows it.

    Returns:
        tuple[nn.Conv2d, nn.Module]: A convolution with bias and an identity. If the norm cannot be
        fused (a group norm, for example), the two modules are returned unchanged.
    """
    if not is_fusible(norm):
        return conv, norm
    training = conv.training, norm.training
    fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
    conv.train(training[0])
    norm.train(training[1])
    return fused, nn.Identity()


def fuse_norm_of_sum(
    first: nn.Conv2d, second: nn.Conv2d | None, norm: nn.Module
) -> tuple[nn.Conv2d, nn.Conv2d | None, nn.Module]:
    """Fuse a norm into the two convolutions whose sum it follows, if the norm allows it.

    Args:
        first (nn.Conv2d): Convolution that receives the shift of the norm as its bias.
        second (nn.Conv2d, optional): Other convolution, without bias. None for a single convolution.
        norm (nn.Module): The norm of ``first(x) + second(h)``.

    Returns:
        tuple[nn.Conv2d, nn.Conv2d, nn.Module]: The new convolutions and an identity. If the norm cannot be
        fused, the modules are returned unchanged.
    """
    if second is not None and is_fusible(norm):
        scaled, _ = fuse_norm(second, norm)
        second.weight.data = scaled.weight.data
    first, norm = fuse_norm(first, norm)
    return first, second, norm
