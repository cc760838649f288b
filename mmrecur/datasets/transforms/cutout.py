"""Cutout as defined by its authors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from mmrecur.checks import check_int
from mmrecur.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CenteredCutout(BaseTransform):
    """Blank out a square around a random pixel, `DeVries and Taylor 2017 <https://arxiv.org/abs/1708.04552>`_.

    The centre is uniform over the image, and parts of the square outside the image are cut off. MMCV's
    ``cutout``, which MMPretrain uses, instead moves the square into the image at the top and the left, and
    changes only half of the images by default.

    Args:
        size (int): Side of the square. Defaults to 16.
        pad_val (Sequence[float]): Value of each channel in the square. The mean of the data set becomes zero
            after normalisation. Defaults to zeros.

    Raises:
        ValueError: If ``size`` is less than 1.
    """

    def __init__(self, size: int = 16, pad_val: Sequence[float] = (0, 0, 0)) -> None:
        check_int('size', size, 1)
        self.size = size
        self.pad_val = tuple(pad_val)

    def transform(self, results: dict) -> dict:
        """Blank out a square of ``results['img']``.

        Args:
            results (dict): Contains ``img``, an array of shape (H, W, C).

        Returns:
            dict: ``results`` with a changed copy of the image.
        """
        image = results['img'].copy()
        height, width = image.shape[:2]
        top, left = (np.random.randint(side) - self.size // 2 for side in (height, width))
        rows = slice(max(top, 0), top + self.size)
        columns = slice(max(left, 0), left + self.size)
        image[rows, columns] = np.round(self.pad_val) if image.dtype == np.uint8 else self.pad_val
        results['img'] = image
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, pad_val={self.pad_val})'
