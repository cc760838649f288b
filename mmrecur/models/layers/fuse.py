"""Folding of batch norms into the convolutions before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def is_foldable(norm: nn.Module) -> bool:
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


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """Fold the norm behind a convolution into it, where the norm allows.

    Args:
        conv (nn.Conv2d): The convolution.
        norm (nn.Module): The norm that follows it.

    Returns:
        tuple[nn.Conv2d, nn.Module]: A convolution with bias and an identity, or the two modules as
        they are if the norm cannot be folded (a group norm, say).
    """
    if not is_foldable(norm):
        return conv, norm
    training = conv.training, norm.training
    fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
    conv.train(training[0])
    norm.train(training[1])
    return fused, nn.Identity()

def fold_sum(
    conv: nn.Conv2d, other: nn.Conv2d | None, norm: nn.Module
) -> tuple[nn.Conv2d, nn.Conv2d | None, nn.Module]:
    """Fold a norm into the two convolutions whose sum it takes.

    The norm scales both products and shifts their sum: the shift goes to the first.

    Args:
        conv (nn.Conv2d): The first convolution.
        other (nn.Conv2d, optional): The second one, if there is one; it has no bias.
        norm (nn.Module): The norm.

    Returns:
        tuple[nn.Conv2d, nn.Conv2d, nn.Module]: The folded convolutions and an identity, or the modules as
        they are if the norm cannot be folded.
    """
    folded, identity = fold_norm(conv, norm)
    if other is not None and folded is not conv:
        other.weight.data = fold_norm(other, norm)[0].weight.data
    return folded, other, identity
