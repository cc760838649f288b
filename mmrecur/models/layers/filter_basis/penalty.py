"""The orthogonality penalty of filter bases."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonality_penalty(matrix: Tensor) -> Tensor:
    r"""Return the squared deviation of the rows from orthonormality, :math:`\|B B^\top - I\|_F^2`.

    Kang and Kim 2021 (https://arxiv.org/abs/2006.05066), equation 7. Autocast does not apply: half precision
    would round the small deviations of a nearly orthonormal basis to zero.

    Args:
        matrix (Tensor): B, shape (R, K). If R > K, the penalty is at least R - K.

    Returns:
        Tensor: Scalar, in the dtype of ``matrix``.

    Example:
        >>> orthogonality_penalty(2 * torch.eye(3))
        tensor(27.)
    """
    device = matrix.device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return _squared_deviation(matrix)
    with torch.autocast(device, enabled=False):
        return _squared_deviation(matrix)


def _squared_deviation(matrix: Tensor) -> Tensor:
    # With more rows than columns, B^T B is smaller than B B^T. Its penalty has the same gradient and differs
    # by a constant: the number of surplus rows.
    surplus = max(matrix.size(0) - matrix.size(1), 0)
    rows = matrix.T if surplus else matrix
    identity = torch.eye(rows.size(0), dtype=matrix.dtype, device=matrix.device)
    return (rows @ rows.T - identity).square().sum() + surplus
