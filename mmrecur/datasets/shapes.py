"""Render pictures of coloured shapes for detection, instance segmentation and classification.

:func:`render_scene` draws a picture that depends on ``(seed, split, index)`` only. A pixel belongs to the
last-drawn shape that covers at least half of it, and a shape paints only the pixels that belong to it. The
masks are therefore exact: the picture differs from its background in the union of the masks, and no two masks
overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

CLASSES = ('circle', 'rectangle', 'triangle', 'star', 'ring')
SPLITS = ('train', 'val')
BACKGROUNDS = ('noise', 'gradient', 'stripes', 'checks')
# Increase with every change to the drawing: pictures of different revisions differ.
REVISION = 1

# Minimum height and width: mmdet's COCO base configs drop training images with a shorter side.
MIN_SIDE = 32
# Diameter of a shape's circumscribed circle relative to the shorter side, and its minimum in pixels.
# Below the minimum, a star and a triangle look alike.
SIZE_RANGE = (0.2, 0.5)
MIN_DIAMETER = 12
# Minimum part of a shape's area that is neither covered nor outside the picture, and minimum number of its
# visible pixels.
MIN_VISIBLE_FRACTION = 0.6
MIN_VISIBLE_PIXELS = 24

_TRIES = 20  # placements tried before a shape is left out of a crowded picture
_SUBPIXELS = 4  # side of the grid of points on which the coverage of a pixel is counted
_BACKGROUND_CONTRAST = 120.0  # intended RGB distance of a shape from the background
_SHAPE_CONTRAST = 60.0  # intended RGB distance between two shapes of a picture


@dataclass(frozen=True)
class Instance:
    """A shape of a picture.

    Args:
        label (int): Index of the class in :data:`CLASSES`.
        mask (np.ndarray): Visible pixels, of shape (H, W) and type bool.
    """

    label: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Return the number of visible pixels."""
        return int(self.mask.sum())

    @property
    def bbox(self) -> list[int]:
        """Return the tight box [x, y, width, height] around the visible pixels."""
        rows, cols = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        x, y = int(cols[0]), int(rows[0])
        return [x, y, int(cols[-1]) - x + 1, int(rows[-1]) - y + 1]


@dataclass(frozen=True)
class Scene:
    """A picture with its shapes.

    Args:
        image (np.ndarray): RGB picture of shape (H, W, 3) and type uint8.
        background (np.ndarray): The same picture without shapes.
        instances (list[Instance]): Shapes in drawing order; later ones occlude earlier ones.
    """

    image: np.ndarray
    background: np.ndarray
    instances: list[Instance]


def check_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f'{name} is {value!r}; allowed: an integer of at least {minimum}')


def check_drawing(seed: Any, size: Any, max_objects: Any) -> None:
    check_int('seed', seed, 0)
    check_int('max_objects', max_objects, 1)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f'size is {size!r}; allowed: two integers, height and width')
    for side in size:
        check_int('size', side, MIN_SIDE)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list]:
    """Return a background of shape (H, W, 3) and type float32, and the colours that it is mixed from."""
    height, width = size
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(0.06, 0.3) * min(size)
    if kind == 'noise':
        cells = [max(2, round(side / period) + 1) for side in size]
        coarse = rng.random(cells).astype(np.float32)
        mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    elif kind == 'gradient':
        mix = (along - along.min()) / (along.max() - along.min())
    elif kind == 'stripes':
        # A clipped sine gives stripes with soft edges; the offset changes their width.
        wave = np.sin(along * (2 * math.pi / period)) + rng.uniform(-0.5, 0.5)
        mix = np.clip(0.5 + rng.uniform(0.5, 3) * wave, 0, 1)
    else:
        mix = (np.floor(along / period) + np.floor(across / period)) % 2
    first = rng.uniform(30, 225, 3)
    second = np.clip(first + rng.uniform(-60, 60, 3), 0, 255)
    colours = [first, (first + second) / 2, second]
    return (first + mix[..., None] * (second - first)).astype(np.float32), colours


def _pick_colour(
    rng: np.random.Generator, background: list[np.ndarray], shapes: list[np.ndarray]
) -> np.ndarray:
    """Choose a colour that differs from the background and from the other shapes."""
    candidates = rng.uniform(0, 255, (64, 3))
    ratios = [np.linalg.norm(candidates - c, axis=1) / _BACKGROUND_CONTRAST for c in background]
    ratios += [np.linalg.norm(candidates - c, axis=1) / _SHAPE_CONTRAST for c in shapes]
    # If no candidate reaches the contrasts in a picture with many colours, take the best one.
    return candidates[np.minimum(np.min(ratios, axis=0), 1).argmax()]


def _contours(rng: np.random.Generator, name: str, radius: float) -> list[np.ndarray]:
    """Return the contours of a shape as points (K, 2) around the origin; the second one is a hole."""
    turn = rng.uniform(0, 2 * math.pi)

    def polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
        angles = angles + turn
        return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)

    if name == 'rectangle':
        half = math.atan(rng.uniform(0.4, 1.0))
        return [polygon(np.array([half, math.pi - half, math.pi + half, -half]), radius)]
    if name == 'triangle':
        jitter = rng.uniform(-0.3, 0.3, 3)
        return [polygon(np.arange(3) * (2 * math.pi / 3) + jitter, radius)]
    if name == 'star':
        inner = rng.uniform(0.38, 0.5)
        radii = radius * np.where(np.arange(10) % 2, inner, 1.0)
        return [polygon(np.arange(10) * (math.pi / 5), radii)]
    circle = polygon(np.linspace(0, 2 * math.pi, 96, endpoint=False), radius)
    if name == 'ring':
        return [circle, circle * rng.uniform(0.45, 0.65)]
    return [circle]


def _coverage(contours: list[np.ndarray], centre: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Rasterise a shape on a patch that contains it.

    Returns:
        tuple: Covered part of each pixel, of shape (n, n) and in [0, 1], and the first (x, y) of the patch.
    """
    origin = np.floor(centre - radius).astype(int) - 1
    side = math.ceil(2 * radius) + 4
    canvas = np.zeros((side * _SUBPIXELS,) * 2, np.uint8)
    # Subtract a half because integer coordinates are centres of pixels in OpenCV.
    points = [np.rint((c + centre - origin) * _SUBPIXELS - 0.5).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, points, 1)
    blocks = canvas.reshape(side, _SUBPIXELS, side, _SUBPIXELS)
    return blocks.sum(axis=(1, 3)) / _SUBPIXELS**2, origin


class _Canvas:
    """An unfinished picture, with the shape that owns each pixel and the pixels that each shape must keep."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.pixels, self.background_colours = _background(rng, size)
        self.owner = np.full(size, -1, np.int32)
        self.needed: list[int] = []
        self.labels: list[int] = []
        self.colours: list[np.ndarray] = []

    def add(self, label: int) -> bool:
        """Draw a shape where all shapes stay visible; return whether such a place was found."""
        for _ in range(_TRIES):
            coverage, origin = self._place(label)
            whole = coverage >= 0.5
            needed = max(MIN_VISIBLE_PIXELS, math.ceil(MIN_VISIBLE_FRACTION * whole.sum()))
            start = np.maximum(origin, 0)
            stop = np.minimum(origin + len(whole), self.owner.shape[::-1])
            window = np.s_[start[1] : stop[1], start[0] : stop[0]]
            start, stop = start - origin, stop - origin
            coverage = coverage[start[1] : stop[1], start[0] : stop[0]]
            owner = self.owner.copy()
            owner[window][coverage >= 0.5] = len(self.labels)
            visible = np.bincount(owner[owner >= 0], minlength=len(self.labels) + 1)
            if (visible >= np.array([*self.needed, needed])).all():
                self.owner = owner
                self.labels.append(label)
                self.needed.append(needed)
                self._paint(window, coverage)
                return True
        return False

    def _place(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        short = min(self.owner.shape)
        low, high = max(SIZE_RANGE[0] * short, MIN_DIAMETER), SIZE_RANGE[1] * short
        radius = math.exp(self.rng.uniform(math.log(low), math.log(high))) / 2
        # Up to a quarter of the diameter may lie outside the picture.
        centre = self.rng.uniform(radius / 2, np.array(self.owner.shape[::-1]) - radius / 2)
        return _coverage(_contours(self.rng, CLASSES[label], radius), centre, radius)

    def _paint(self, window: tuple[slice, slice], coverage: np.ndarray) -> None:
        colour = _pick_colour(self.rng, self.background_colours, self.colours)
        self.colours.append(colour)
        y, x = np.mgrid[: coverage.shape[0], : coverage.shape[1]] / max(coverage.shape) - 0.5
        slope_y, slope_x = self.rng.uniform(-25, 25, 2)
        fill = colour + (slope_y * y + slope_x * x)[..., None]
        alpha = np.where(coverage >= 0.5, coverage, 0)[..., None]
        self.pixels[window] += alpha * (fill - self.pixels[window])


def render_scene(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int] = (128, 128),
    max_objects: int = 4,
    label: int | None = None,
) -> Scene:
    """Draw a picture of a split that depends on the arguments only.

    Shapes are drawn on top of each other. A shape that would make itself or an earlier shape less visible
    than :data:`MIN_VISIBLE_FRACTION` and :data:`MIN_VISIBLE_PIXELS` require is placed elsewhere. It is left
    out if no place is found, so every shape of the picture is in ``instances``.

    Args:
        seed (int): Seed of the data set, non-negative.
        split (str): 'train' or 'val'. The splits use different random streams.
        index (int): Index of the picture in the split.
        size (tuple[int, int]): Height and width, each at least 32. Defaults to (128, 128).
        max_objects (int): Maximum number of shapes; the minimum is 1. Defaults to 4.
        label (int, optional): Class of the only shape. Defaults to None, random shapes.

    Returns:
        Scene: The picture, its background and its shapes.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> scene = render_scene(seed=0, split='train', index=0)
        >>> scene.image.shape
        (128, 128, 3)
    """
    check_drawing(seed, size, max_objects)
    check_int('index', index, 0)
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; allowed: {", ".join(SPLITS)}')
    if label is not None and label not in range(len(CLASSES)):
        raise ValueError(f'label is {label!r}; allowed: None or 0 to {len(CLASSES) - 1}')
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _Canvas(rng, tuple(size))
    noise = rng.normal(0, rng.uniform(2, 10), (*size, 1))
    background = canvas.pixels.copy()
    count = 1 if label is not None else rng.integers(1, max_objects + 1)
    for _ in range(count):
        canvas.add(int(rng.integers(len(CLASSES))) if label is None else label)
    image, background = (
        np.rint(np.clip(pixels + noise, 0, 255)).astype(np.uint8) for pixels in (canvas.pixels, background)
    )
    instances = [Instance(k, canvas.owner == i) for i, k in enumerate(canvas.labels)]
    return Scene(image, background, instances)
