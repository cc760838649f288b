"""A batch norm whose statistics count only some of the samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def masked_batch_norm(x: Tensor, norm: _BatchNorm, weights: Tensor) -> Tensor:
    """Apply a batch norm in training mode with the statistics of some of the samples.

    The norm normalises every sample, but takes mean and variance from those with weight 1, and updates its
    running statistics with them. If all weights are 1, the result is that of ``norm(x)``. A
    ``SyncBatchNorm`` counts the samples of all its processes.

    A variance needs at least two values. If fewer values of a channel count (no sample, or one sample with a
    map of a single pixel), the norm uses its running statistics and leaves them unchanged.

    Args:
        x (Tensor): Shape (N, C, H, W).
        norm (_BatchNorm): The norm. Its running statistics are updated.
        weights (Tensor): 1 for samples that count, 0 for the others, shape (N,).

    Returns:
        Tensor: Shape (N, C, H, W), with the dtype of ``x``.
    """
    values = x if x.dtype == torch.float64 else x.float()
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    weights = weights.detach().to(values)
    pivot, share, count = _pivot_and_shares(values, norm, weights)
    # Compute everything, gradients included, from the centred map. With a mean far from zero, sums over x
    # and over its square would cancel. The result does not depend on the pivot, so the pivot needs no
    # gradient. The centred map is also the only one kept for the backward pass.
    centred = values - pivot.view(per_channel)
    mean, var = _weighted_statistics(centred, norm, share)
    if norm.running_mean is not None:
        enough = count > 1
        mean = torch.where(enough, mean, torch.zeros_like(mean))
        var = torch.where(enough, var, norm.running_var.to(values))
        _update_running_statistics(norm, pivot + mean.detach(), var.detach(), count)
    scale = torch.rsqrt(var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
        shift = norm.bias - mean * scale
    else:
        shift = -mean * scale
    return torch.addcmul(shift.view(per_channel), centred, scale.view(per_channel)).to(x.dtype)


@torch.no_grad()
def _pivot_and_shares(x: Tensor, norm: _BatchNorm, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a value to centre each channel on, the share of each sample, and the number of values.

    Shapes: (C,), (N, 1) and (). The pivot is close to the mean of the channel. If a channel has fewer than
    two values that count, the pivot is the running mean, where the norm has one.
    """
    weights = (weights * x[0, 0].numel()).unsqueeze(1)
    sample_means = x.mean(tuple(range(2, x.dim())))
    total = _sum_over_processes(torch.cat([(weights * sample_means).sum(0), weights.sum(0)]), norm)
    count = total[-1]
    mean = total[:-1] / count.clamp(min=1)
    if norm.running_mean is not None:
        mean = torch.where(count > 1, mean, norm.running_mean.to(mean))
    return mean, weights / count.clamp(min=1), count


def _weighted_statistics(x: Tensor, norm: _BatchNorm, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of a map with a mean close to zero."""
    pixels = tuple(range(2, x.dim()))
    # sums instead of matrix products, which autocast would round to half precision
    moments = torch.stack([x.mean(pixels), x.square().mean(pixels)], dim=1)
    mean, square = _sum_over_processes((share.unsqueeze(1) * moments).sum(0), norm)
    return mean, square - mean.square()


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as the norm itself does, unless fewer than two values count."""
    enough = (count > 1).to(norm.running_mean)
    norm.num_batches_tracked.add_(enough.to(norm.num_batches_tracked))
    momentum = norm.momentum
    if momentum is None:  # the average over all batches
        momentum = 1.0 / norm.num_batches_tracked.clamp(min=1).to(norm.running_mean)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(mean.to(norm.running_mean), enough * momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var), enough * momentum)


def _sum_over_processes(x: Tensor, norm: _BatchNorm) -> Tensor:
    """Return the sum of ``x`` over the processes of a ``SyncBatchNorm``, or ``x`` for any other norm."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return x
    group = norm.process_group or dist.group.WORLD
    return _SumOverProcesses.apply(x, group) if dist.get_world_size(group) > 1 else x


class _SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over the processes of a group; the gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(grad, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, group: None) -> Tensor:
        return _SumOverProcesses.apply(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, group: Any) -> tuple[Tensor, int | None]:
        return _SumOverProcesses.apply(x, group), in_dims[0]
