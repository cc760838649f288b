"""A 1x1 convolution of many maps, computed as they come instead of from their concatenation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrecur.models.layers.common.modes import is_traced

_HALF = (torch.float16, torch.bfloat16)


def pointwise_sum(maps: Iterable[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """Sum of the 1x1 convolutions of maps.

    The same as the convolution of ``cat(maps)`` with ``cat(weights)``, but each map can go when it is read.
    On a CPU the sum is formed by the matrix products themselves, without a pass of its own over memory.
    In half precision it is kept in float32.

    Args:
        maps (Iterable[Tensor]): At least one map, shape (N, C_i, H, W).
        weights (Sequence[Tensor]): Of each its weight, shape (C_out, C_i, 1, 1).
        bias (Tensor, optional): Shape (C_out,). Defaults to None.

    Returns:
        Tensor: Shape (N, C_out, H, W).
    """
    total = shape = dtype = None
    for i, x in enumerate(maps):
        weight = weights[i]
        if total is None:
            as_matrices = _is_plain_cpu(x) and not torch.is_autocast_enabled('cpu')
            # matrices of half precision would round the sum with every map
            as_matrices = as_matrices and x.dtype == weight.dtype and x.dtype not in _HALF
        if as_matrices:
            shape = x.shape
            rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.size(1)), weight.flatten(1).t()
            if total is not None:
                total.addmm_(rows, matrix)
            else:
                total = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
            continue
        part = F.conv2d(x, weight, bias if total is None else None)
        if total is not None:
            total += part
        elif type(part) is Tensor and part.dtype in _HALF:
            dtype, total = part.dtype, part.float()
        else:
            total = part
    if as_matrices:
        return total.view(shape[0], shape[2], shape[3], total.size(1)).permute(0, 3, 1, 2)
    return total if dtype is None else total.to(dtype)


def with_fast_layout(x: Tensor) -> Tensor:
    """A map in the layout in which convolutions of its device are fast: channels last on a CPU.

    Args:
        x (Tensor): Shape (N, C, H, W).

    Returns:
        Tensor: The same values; ``x`` itself on other devices, under compilation, tracing and
        the transforms of ``torch.func``.
    """
    return x.contiguous(memory_format=torch.channels_last) if _is_plain_cpu(x) else x


def _is_plain_cpu(x: Tensor) -> bool:
    return not is_traced(x) and x.device.type == 'cpu'
