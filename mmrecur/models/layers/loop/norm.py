"""Norms of a block that runs several times: one for each iteration (LVBN and I-LVBN)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrecur.models.layers.common.checks import check_int


@dataclass
class LoopPosition:
    """Where the loop is that a block runs in; all norms of the block look at one.

    Attributes:
        iteration (int): Index of the iteration.
        passed (Tensor, optional): In training the weight of each sample in the statistics, 1 or 0, shape
            (N,). None stands for ones.
    """

    iteration: int = 0
    passed: Tensor | None = None


class LoopNorm(nn.ModuleList):
    """Loopy variable batch norm: parameters and statistics of their own for each iteration of a loop.

    Guo et al., *Dynamic Recursive Neural Network*, CVPR 2019. With ``masked`` it is the improved form
    (I-LVBN): in training, samples that a gate did not let pass are normalised by, but do not count in, the
    statistics of the batch and the running ones. An iteration that no sample passes normalises by the
    running statistics and leaves them as they are; so does one in which a single value passes, a sample with
    a map of one pixel, since it has no variance.

    Args:
        norm (nn.Module): The norm of the first iteration, which the others start as copies of. What is no
            batch norm knows no statistics of a batch, so that ``masked`` changes nothing.
        num_iterations (int): Iterations.
        position (LoopPosition): Shared with the loop, which sets it.
        masked (bool): I-LVBN. Defaults to False.

    Example:
        >>> import torch
        >>> position = LoopPosition()
        >>> norm = LoopNorm(nn.BatchNorm2d(8), num_iterations=3, position=position, masked=True)
        >>> position.iteration, position.passed = 2, torch.tensor([1.0, 0.0])
        >>> norm(torch.rand(2, 8, 4, 4)).shape  # by the statistics of the first sample
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self, norm: nn.Module, num_iterations: int, position: LoopPosition, masked: bool = False
    ) -> None:
        check_int('num_iterations', num_iterations, 1)
        super().__init__([norm, *(copy.deepcopy(norm) for _ in range(num_iterations - 1))])
        self.position = position
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map.

        Args:
            x (Tensor): Shape (N, C, H, W).

        Returns:
            Tensor: Of the same shape.
        """
        norm = self[self.position.iteration]
        passed = self.position.passed
        if self.masked and passed is not None and isinstance(norm, _BatchNorm) and norm.training:
            return masked_batch_norm(x, norm, passed)
        return norm(x)


def masked_batch_norm(x: Tensor, norm: _BatchNorm, weights: Tensor) -> Tensor:
    """Apply a batch norm in training with the statistics of some of the samples.

    With weights of one it computes what the norm does. A ``SyncBatchNorm`` takes the samples of all its
    processes.

    Args:
        x (Tensor): Shape (N, C, H, W).
        norm (_BatchNorm): The norm, whose running statistics are updated; not if no more than one value of
            a channel counts, and x is normalised by them then.
        weights (Tensor): 1 for samples that count, 0 for others, shape (N,).

    Returns:
        Tensor: All samples normalised, shape (N, C, H, W), in the dtype of x.
    """
    values = x if x.dtype == torch.float64 else x.float()
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    weights = weights.detach().to(values)
    pivot, share, count = _shares(values, norm, weights)
    # All else is computed from the centred map, gradients too: with a mean far from zero, sums over x and
    # over its square would cancel. Centred by anything else the result would be the same, so that the pivot
    # needs no gradient. It is also the only map that is kept for the backward pass.
    centred = values - pivot.view(per_channel)
    mean, var = _masked_statistics(centred, norm, share)
    if norm.running_mean is not None:
        some = count > 1  # one value has no variance
        mean = torch.where(some, mean, torch.zeros_like(mean))
        var = torch.where(some, var, norm.running_var.to(values))
        _record(norm, pivot + mean.detach(), var.detach(), count)
    scale = torch.rsqrt(var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
        shift = norm.bias - mean * scale
    else:
        shift = -mean * scale
    return torch.addcmul(shift.view(per_channel), centred, scale.view(per_channel)).to(x.dtype)


@torch.no_grad()
def _shares(x: Tensor, norm: _BatchNorm, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """About the mean of each channel, each sample's share in it, and how many values of a channel count.

    If no more than one does, the first is the running mean, if there is any.
    """
    weights = (weights * x[0, 0].numel()).unsqueeze(1)
    own = x.mean(tuple(range(2, x.dim())))
    total = _over_processes(torch.cat([(weights * own).sum(0), weights.sum(0)]), norm)
    count = total[-1]
    mean = total[:-1] / count.clamp(min=1)
    if norm.running_mean is not None:
        mean = torch.where(count > 1, mean, norm.running_mean.to(mean))
    return mean, weights / count.clamp(min=1), count


def _masked_statistics(x: Tensor, norm: _BatchNorm, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel; ``x`` has a mean close to zero."""
    pixels = tuple(range(2, x.dim()))
    # sums, not products of matrices: autocast would round those to half precision
    moments = torch.stack([x.mean(pixels), x.square().mean(pixels)], dim=1)
    mean, square = _over_processes((share.unsqueeze(1) * moments).sum(0), norm)
    return mean, square - mean.square()


def _over_processes(x: Tensor, norm: _BatchNorm) -> Tensor:
    """The sum of ``x`` over the processes of a ``SyncBatchNorm``; of any other norm ``x`` itself."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return x
    group = norm.process_group or dist.group.WORLD
    return _SumOverProcesses.apply(x, group) if dist.get_world_size(group) > 1 else x


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes of a group; its gradient is the sum of theirs."""

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


@torch.no_grad()
def _record(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics as the norm itself would, unless no more than one value counts."""
    some = (count > 1).to(norm.running_mean)
    norm.num_batches_tracked.add_(some.to(norm.num_batches_tracked))
    momentum = norm.momentum
    if momentum is None:  # the average over all batches
        momentum = 1.0 / norm.num_batches_tracked.clamp(min=1).to(norm.running_mean)
    unbiased = var * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(mean.to(norm.running_mean), some * momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var), some * momentum)
