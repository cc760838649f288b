"""Folding of batch norms into the convolutions before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def is_fusible(norm: nn.Module) -> bool:
    """Whether a norm is an affine map in evaluation: a batch norm that keeps running statistics."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def norm_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift that a batch norm applies in evaluation.

    Args:
        norm (_BatchNorm): Norm with running statistics.

    Returns:
        tuple[Tensor, Tensor]: ``scale`` and ``shift``, each of shape (C,), such that the norm computes
        ``scale * x + shift``.
    """
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale, shift


def fuse_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """Fold the norm behind a convolution into it, where the norm allows.

    Args:
        conv (nn.Conv2d): The convolution.
        norm (nn.Module): The norm that follows it.

    Returns:
        tuple[nn.Conv2d, nn.Module]: A convolution with bias and an identity, or the two modules as
        they are if the norm cannot be folded (a group norm, say).
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
    """Fold the norm behind the sum of two convolutions into them, where the norm allows.

    Args:
        first (nn.Conv2d): The one that takes the norm's shift as its bias.
        second (nn.Conv2d, optional): The other, without bias; None if there is none.
        norm (nn.Module): The norm of ``first(x) + second(h)``.

    Returns:
        tuple[nn.Conv2d, nn.Conv2d, nn.Module]: The three in their new form, the norm an identity; or
        as they are if it cannot be folded.
    """
    if second is not None and is_fusible(norm):
        scaled, _ = fuse_norm(second, norm)
        second.weight.data = scaled.weight.data
    first, norm = fuse_norm(first, norm)
    return first, second, norm
