"""Faster forms of plain computations.

Each function returns what its docstring states on every device; only the speed depends on the path. Each
path saves more than 5 % of a step of the smallest network that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrecur.models.layers.common.modes import is_traced

_HALF = (torch.float16, torch.bfloat16)


def pointwise_sum(maps: Iterable[Tensor], weights: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """Return the sum of the 1x1 convolutions of several maps.

    The result equals the convolution of ``cat(maps)`` with ``cat(weights)``, but each map can be freed as
    soon as it has been read. On a CPU, matrix products add to the sum directly, which saves a pass over
    memory for each map. In half precision the sum is kept in float32.

    Args:
        maps (Iterable[Tensor]): One or more maps, shape (N, C_i, H, W).
        weights (Sequence[Tensor]): Weight of each map, shape (C_out, C_i, 1, 1).
        bias (Tensor, optional): Shape (C_out,). Defaults to None.

    Returns:
        Tensor: Shape (N, C_out, H, W).
    """
    total = shape = dtype = None
    for i, x in enumerate(maps):
        weight = weights[i]
        if total is None:
            as_matrices = _use_matrices(x, weight)
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


def _use_matrices(x: Tensor, weight: Tensor) -> bool:
    if is_traced(x) or x.device.type != 'cpu' or torch.is_autocast_enabled('cpu'):
        return False
    # products in half precision would round the sum with every map
    return x.dtype == weight.dtype and x.dtype not in _HALF
