"""F1 score of marked pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from mmrecur.registry import METRICS


@METRICS.register_module()
class PixelF1(BaseMetric):
    """F1 score, precision and recall of marked pixels, computed over the pixels of all examples.

    Args:
        collect_device (str): Device on which results of several processes are collected. Defaults to 'cpu'.
        prefix (str, optional): Prefix of the names of the metrics. Defaults to None.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the marked pixels of a batch.

        Args:
            data_batch (Any): Unused.
            data_samples (Sequence[dict]): Examples with tensors ``prediction`` and ``target`` of the same
                shape, which are nonzero at marked pixels.

        Raises:
            ValueError: If an example lacks ``prediction`` or ``target``.
        """
        for sample in data_samples:
            if missing := {'prediction', 'target'}.difference(sample):
                raise ValueError(f'example without {", ".join(sorted(missing))}, allowed: one with both')
            found, wanted = sample['prediction'].bool(), sample['target'].bool()
            hits = (found & wanted).sum().item()
            self.results.append((hits, found.sum().item(), wanted.sum().item()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the scores, which are 0 if no pixel is marked.

        Args:
            results (list): Numbers of correctly marked, marked and true pixels of each example.

        Returns:
            dict[str, float]: ``f1``, ``precision`` and ``recall``, from 0 to 1.
        """
        hits, found, wanted = (sum(column) for column in zip(*results))
        return dict(
            f1=2 * hits / max(found + wanted, 1),
            precision=hits / max(found, 1),
            recall=hits / max(wanted, 1),
        )
