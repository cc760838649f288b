"""Least-squares fits of shared filters in the metric of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TEMPLATE_SWEEPS = 10


def relative_error(weight: Tensor, fit: Tensor, metric: Tensor) -> float:
    """Return ``||y - y'|| / ||y||`` of the outputs of a convolution and its fit.

    Args:
        weight (Tensor): The filters, shape (groups, filters per group, K).
        fit (Tensor): The fitted filters.
        metric (Tensor): See :meth:`InputStatistics.metric`.
    """
    off, whole = (_energy(w, metric) for w in (weight - fit, weight))
    return (off / whole.clamp(min=1e-30)).sqrt().item()


def _energy(weight: Tensor, metric: Tensor) -> Tensor:
    return ((weight @ metric) * weight).sum().clamp(min=0)


def fit_whole(weights: Sequence[Tensor], metrics: Sequence[Tensor]) -> Tensor:
    """Return the filters whose outputs are closest to those of several convolutions.

    Args:
        weights (Sequence[Tensor]): Filters of each convolution, shape (groups, filters per group, K).
        metrics (Sequence[Tensor]): Metric of each convolution, shape (groups, K, K).

    Returns:
        Tensor: Shape (groups, filters per group, K).
    """
    right = sum(weight @ metric for weight, metric in zip(weights, metrics))
    return torch.linalg.solve(sum(metrics), right.transpose(1, 2)).transpose(1, 2)


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """Return orthonormal rows with the span of the rows of a matrix, leading rows first."""
    return torch.linalg.qr(matrix.T).Q.T


def principal_filters(matrix: Tensor, metric: Tensor, rank: int) -> Tensor:
    """Return filters whose span best explains the outputs of the rows of a matrix.

    Args:
        matrix (Tensor): Filters, shape (N, K).
        metric (Tensor): Shape (K, K).
        rank (int): Number of filters, at most K.

    Returns:
        Tensor: Linearly independent rows, shape (rank, K).
    """
    root = torch.linalg.cholesky(metric)
    whitened = matrix @ root
    rows = torch.linalg.svd(whitened, full_matrices=len(matrix) < rank)[2][:rank]
    return torch.linalg.solve_triangular(root, rows, upper=False, left=False)


def coefficients(weight: Tensor, filters: Tensor, metric: Tensor) -> Tensor:
    """Return the coefficients A with which the outputs of ``A filters`` are closest to those of ``weight``.

    Args:
        weight (Tensor): Shape (T, K).
        filters (Tensor): Shape (R, K).
        metric (Tensor): Shape (K, K).

    Returns:
        Tensor: Shape (T, R).
    """
    seen = filters @ metric
    return torch.linalg.solve(seen @ filters.T, seen @ weight.T).T


def fit_basis(
    weights: Sequence[Tensor], metrics: Sequence[Tensor], scales: Sequence[Tensor], rank: int
) -> Tensor:
    """Return the orthonormal filters that best combine to the filters of several convolutions.

    Args:
        weights (Sequence[Tensor]): Filters of each convolution, shape (T, K).
        metrics (Sequence[Tensor]): Metric of each convolution, shape (K, K).
        scales (Sequence[Tensor]): Weight of each output channel, shape (T, 1).
        rank (int): Number of filters, at most K.

    Returns:
        Tensor: Orthonormal rows, shape (rank, K).
    """
    scaled = torch.cat([scale * weight for scale, weight in zip(scales, weights)])
    return orthonormal_rows(principal_filters(scaled, sum(metrics) / len(metrics), rank))


def fit_bank(
    weights: Sequence[Tensor], metrics: Sequence[Tensor], factors: Tensor, templates: Tensor
) -> tuple[Tensor, Tensor]:
    """Improve coefficients and templates by alternating least squares.

    Args:
        weights (Sequence[Tensor]): Filters of each of L layers, shape (T, K), scaled so that all outputs
            count equally.
        metrics (Sequence[Tensor]): Metric of each layer, shape (K, K).
        factors (Tensor): Coefficients to start from, shape (L, k).
        templates (Tensor): Templates to start from, shape (k, T, K).

    Returns:
        tuple[Tensor, Tensor]: Coefficients and templates.
    """
    stacked = [w @ m for w, m in zip(weights, metrics)]
    for _ in range(TEMPLATE_SWEEPS):
        right = torch.einsum('lk,ltc->ktc', factors, torch.stack(stacked))

        def apply(x: Tensor, factors: Tensor = factors) -> Tensor:
            own = torch.einsum('lk,ktc->ltc', factors, x)
            seen = torch.stack([w @ m for w, m in zip(own, metrics)])
            return torch.einsum('lk,ltc->ktc', factors, seen)

        templates = conjugate_gradients(apply, right, templates, 20)
        rows = []
        for seen, metric in zip(stacked, metrics):
            gram = torch.einsum('itc,jtc->ij', templates @ metric, templates)
            gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
            rows.append(torch.linalg.solve(gram, torch.einsum('itc,tc->i', templates, seen)))
        factors = torch.stack(rows)
    return factors, templates


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Approach the solution of ``apply(x) = right`` for a symmetric positive definite map.

    Args:
        apply (Callable): The linear map.
        right (Tensor): The right-hand side.
        start (Tensor): Where to start.
        steps (int): Number of steps.
    """
    x, residual = start, right - apply(start)
    direction, size = residual, residual.square().sum()
    for _ in range(steps):
        if size <= 1e-24 * right.square().sum():
            break
        image = apply(direction)
        step = size / (direction * image).sum()
        x, residual = x + step * direction, residual - step * image
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return x
