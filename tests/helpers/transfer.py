"""Plain networks and the authors' ones, grafted and converted."""

from __future__ import annotations

import math

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.checkpoint import Report
from tests import golden
from tests.helpers import randomise_norms


def plain_resnet(
    kind: str = 'ResNet', depth: int = 50, base: int = 8, scope: str = 'mmpretrain', **kw
) -> nn.Module:
    """Build a plain backbone of a library, with the norms of a trained one."""
    torch.manual_seed(1)
    arguments = dict(depth=depth, base_channels=base, stem_channels=base, out_indices=(0, 1, 2, 3)) | kw
    model = MODELS.build(dict(type=f'{scope}.{kind}', **arguments))
    randomise_norms(model)
    model.eval()
    return model


def features(model: nn.Module, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, ...]:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    model.eval()
    with torch.no_grad():
        return model(x.to(next(model.parameters()).dtype))


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a[:, : b.size(1)] - b).abs().max() <= 1e-6 * b.abs().max()


def assert_complete(report: Report, source: dict, model: nn.Module, splits: bool = False) -> None:
    """Require every key of both sides in the report exactly once.

    Args:
        report (Report): Of a graft or a conversion.
        source (dict): What it was made from.
        model (nn.Module): What it was made for.
        splits (bool): A key of the source may have several targets.
    """
    targets = [*report.copied, *report.transformed, *report.initial]
    assert sorted(targets) == sorted(model.state_dict())
    taken = [*report.copied.values(), *(k for keys, _ in report.transformed.values() for k in keys)]
    taken = set(taken) if splits else taken
    assert sorted([*taken, *report.unused]) == sorted(source)


def gradient_norms(model: nn.Module, report) -> dict[str, float]:
    """Norm of the gradient of every source tensor, put together from the targets it went to."""
    squares: dict[str, float] = {}
    parameters = dict(model.named_parameters())
    sources = {target: source for target, source in report.copied.items()}
    sources.update({target: source[0][0] for target, source in report.transformed.items()})
    for target, source in sources.items():
        if target in parameters:
            square = parameters[target].grad.double().square().sum().item()
            squares[source] = squares.get(source, 0.0) + square
    return {source: math.sqrt(square) for source, square in squares.items()}


def replay(fixture: golden.Golden, model: nn.Module, report) -> None:
    golden.replay(fixture, model, lambda model: gradient_norms(model, report))
