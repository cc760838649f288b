"""Cutout as its authors do it."""

from __future__ import annotations

import numpy as np

from mmrecur.datasets import CenteredCutout


def test_squares_are_centred_on_any_pixel_and_cut_off_at_every_border() -> None:
    np.random.seed(0)
    image = np.full((32, 32, 3), 9, np.uint8)
    transform = CenteredCutout(16, pad_val=(125.307, 122.961, 113.8575))
    seen = set()
    for _ in range(3000):
        result = transform(dict(img=image))['img']
        blank = (result != 9).any(axis=2)
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank.sum() == len(rows) * len(columns) > 0  # a rectangle
        assert (result[blank] == (125, 123, 114)).all()
        seen.add((rows[0], rows[-1] + 1))
    assert (image == 9).all()
    # from centre - 8 to centre + 8, for each of the 32 centres
    assert seen == {(max(c - 8, 0), min(c + 8, 32)) for c in range(32)}
