"""Parameter counts of RecNet, from the model and from the paper's Table 1."""

from __future__ import annotations

import torch

from mmrecur.models.backbones import RecNet


def classifier_parameters(num_classes: int = 100, **options) -> int:
    with torch.device('meta'):
        model = RecNet(**options)
    return sum(p.numel() for p in model.parameters()) + num_classes * (model.out_channels[-1] + 1)


def by_hand(e: int, s: tuple, d: tuple, classes: int = 100) -> int:
    """Count the parameters in Table 1 row by row, with separate norms."""
    widths = [a * b for a, b in zip(s, d)]
    count = 27 * widths[0] + 2 * widths[0]
    for i in range(3):
        for out in (widths[i], [*widths, widths[-1]][i + 1]):
            count += 9 * (s[i] + e * s[i]) * e * s[i] + 2 * e * widths[i]
            count += e * widths[i] * out + 2 * out
    return count + classes * (widths[-1] + 1)


def width_of(segments: tuple, steps: tuple) -> int:
    """Return the greatest width with an expansion of 4."""
    return 4 * max(s * d for s, d in zip(segments, steps))
