"""The F1 score against its definition."""

from __future__ import annotations

import pytest
import torch

from mmrecur.evaluation import PixelF1


def test_scores_are_over_all_pixels_together() -> None:
    torch.manual_seed(0)
    predictions, targets = torch.rand(5, 8, 8) > 0.6, (torch.rand(5, 8, 8) > 0.8).float()
    metric = PixelF1()
    for part in (slice(0, 2), slice(2, 5)):
        pairs = zip(predictions[part], targets[part])
        metric.process(None, [dict(prediction=p, target=t) for p, t in pairs])
    scores = metric.evaluate(5)
    wanted = targets.bool()
    precision = wanted[predictions].float().mean().item()
    recall = predictions[wanted].float().mean().item()
    assert scores['precision'] == pytest.approx(precision)
    assert scores['recall'] == pytest.approx(recall)
    assert scores['f1'] == pytest.approx(2 * precision * recall / (precision + recall))


def test_nothing_marked_scores_zero() -> None:
    metric = PixelF1()
    empty = torch.zeros(4, 4)
    metric.process(None, [dict(prediction=empty, target=empty)])
    assert metric.evaluate(1) == dict(f1=0.0, precision=0.0, recall=0.0)


def test_examples_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match='example without target, allowed: one with both'):
        PixelF1().process(None, [dict(prediction=torch.zeros(4, 4))])
