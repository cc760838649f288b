"""Fit of the low-rank residuals with which layers relax the weights that they share."""

from __future__ import annotations

from torch import Tensor

from mmrecur.models.layers.common.low_rank import LowRankResidual, low_rank_factors


def fit_relaxation(
    weight: Tensor, shared: Tensor, relaxation: LowRankResidual | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Fit the residual of a layer to the difference between its own weight and the shared one.

    Args:
        weight (Tensor): Weight of the plain layer, shape (T, ...), in double precision.
        shared (Tensor): The shared weight, in the same shape.
        relaxation (LowRankResidual, optional): The layer's residual, which is not changed; None if it has
            none.

    Returns:
        tuple[dict[str, Tensor], Tensor]: The factors ``'up'`` and ``'down'``, and the weight that the layer
        has with them. Without a residual, no factors and the shared weight.
    """
    if relaxation is None:
        return {}, shared
    up, down = low_rank_factors((weight - shared).flatten(1), relaxation.rank)
    return dict(up=up, down=down), shared + (up @ down).view_as(shared)
