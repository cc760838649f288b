"""A synthetic data set of rendered shapes for detection, instance segmentation, classification.

:func:`render_scene` draws one picture from ``(seed, split, index)`` alone; :func:`write_split`
writes a split, in COCO format or as an image folder. numpy and OpenCV draw, ``pycocotools``
encodes the masks; nothing else is needed. ``tools/dataset_converters/make_shapes.py`` makes whole
data sets with it.

A pixel belongs to the last-drawn shape that covers at least half of it, and only pixels that
belong to a shape are painted with it. So the masks are exact: the pixels where the picture
differs from its background are the union of the masks, and no two masks overlap.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ('circle', 'rectangle', 'triangle', 'star', 'ring')
SPLITS = ('train', 'val')
TASKS = ('detection', 'classification')
BACKGROUNDS = ('noise', 'gradient', 'stripes', 'checks')
# Raise it with every change of what is drawn: data of another revision are not the same data.
REVISION = 1

# Smallest picture side; mmdet's COCO base configs drop training images with a smaller one.
MIN_SIDE = 32
# Diameter of a shape's circumscribed circle, as fractions of the picture's shorter side, and its
# minimum in pixels, below which a star and a triangle look alike.
SIZE_RANGE = (0.2, 0.5)
MIN_DIAMETER = 12
# Every shape shows at least this part of its area (not covered, not outside the picture), and at
# least this many pixels.
MIN_VISIBLE_FRACTION = 0.6
MIN_VISIBLE_PIXELS = 24

_TRIES = 20  # placements tried before a shape is left out of a crowded picture
_SUBPIXELS = 4  # a pixel's coverage is counted on a grid of this many by this many points
_BACKGROUND_CONTRAST = 120.0  # RGB distance wanted between a shape and the background
_SHAPE_CONTRAST = 60.0  # ... and between two shapes of a picture


@dataclass(frozen=True)
class ShapesConfig:
    """What determines a shapes data set, checked on construction.

    Args:
        num_train (int): Training images, at least 1. Defaults to 800.
        num_val (int): Validation images, at least 1. Defaults to 100.
        size (tuple[int, int]): Height and width in pixels, each at least 32.
            Defaults to (128, 128).
        max_objects (int): A picture holds 1 to this many shapes; classification always has one
            and ignores it. Defaults to 4.
        seed (int): Non-negative. Defaults to 0.
        task (str): 'detection' or 'classification'. Defaults to 'detection'.

    Raises:
        ValueError: An argument is outside what is allowed.
    """

    num_train: int = 800
    num_val: int = 100
    size: tuple[int, int] = (128, 128)
    max_objects: int = 4
    seed: int = 0
    task: str = 'detection'

    def __post_init__(self) -> None:
        _check_int('num_train', self.num_train, 1)
        _check_int('num_val', self.num_val, 1)
        _check_drawing(self.seed, self.size, self.max_objects)
        if self.task not in TASKS:
            raise ValueError(f'task is {self.task!r}; allowed: {", ".join(TASKS)}')
        object.__setattr__(self, 'size', tuple(self.size))

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments that matter to the task, plus the renderer's revision."""
        values = asdict(self) | {'size': list(self.size), 'revision': REVISION}
        if self.task == 'classification':
            del values['max_objects']
        return values


@dataclass(frozen=True)
class Instance:
    """One shape of a picture.

    Args:
        label (int): Index into :data:`CLASSES`.
        mask (np.ndarray): (H, W) bool, the shape's visible pixels.
    """

    label: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Number of visible pixels."""
        return int(self.mask.sum())

    @property
    def bbox(self) -> list[int]:
        """Tight box [x, y, width, height] around the visible pixels."""
        rows, cols = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        x, y = int(cols[0]), int(rows[0])
        return [x, y, int(cols[-1]) - x + 1, int(rows[-1]) - y + 1]


@dataclass(frozen=True)
class Scene:
    """A picture and its shapes.

    Args:
        image (np.ndarray): (H, W, 3) uint8, RGB.
        background (np.ndarray): The same picture without any shape.
        instances (list[Instance]): In drawing order: later ones occlude earlier ones.
    """

    image: np.ndarray
    background: np.ndarray
    instances: list[Instance]


def _check_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f'{name} is {value!r}; allowed: an integer of at least {minimum}')


def _check_drawing(seed: Any, size: Any, max_objects: Any) -> None:
    _check_int('seed', seed, 0)
    _check_int('max_objects', max_objects, 1)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f'size is {size!r}; allowed: two integers, height and width')
    for side in size:
        _check_int('size', side, MIN_SIDE)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list]:
    """Returns a (H, W, 3) float32 background and the colours it is mixed from."""
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
        # A steep sine: stripes with soft edges, wide or narrow by the offset.
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
    """Draws a colour that stands out from the background and from the other shapes."""
    candidates = rng.uniform(0, 255, (64, 3))
    ratios = [np.linalg.norm(candidates - c, axis=1) / _BACKGROUND_CONTRAST for c in background]
    ratios += [np.linalg.norm(candidates - c, axis=1) / _SHAPE_CONTRAST for c in shapes]
    # In a picture of very many colours no candidate may reach the contrasts: take the best then.
    return candidates[np.minimum(np.min(ratios, axis=0), 1).argmax()]


def _contours(rng: np.random.Generator, name: str, radius: float) -> list[np.ndarray]:
    """Returns a shape's contours, (K, 2) points around the origin; a second one is a hole."""
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
    """Rasterises a shape on a patch that holds it whole.

    Returns:
        tuple: Each pixel's covered part, (n, n) in [0, 1], and the patch's first (x, y).
    """
    origin = np.floor(centre - radius).astype(int) - 1
    side = math.ceil(2 * radius) + 4
    canvas = np.zeros((side * _SUBPIXELS,) * 2, np.uint8)
    # OpenCV's integer coordinates are centres of pixels, hence the half.
    points = [np.rint((c + centre - origin) * _SUBPIXELS - 0.5).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, points, 1)
    blocks = canvas.reshape(side, _SUBPIXELS, side, _SUBPIXELS)
    return blocks.sum(axis=(1, 3)) / _SUBPIXELS**2, origin


class _Canvas:
    """A picture in the making: who owns each pixel, and how much each shape must keep."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.pixels, self.background_colours = _background(rng, size)
        self.owner = np.full(size, -1, np.int32)
        self.needed: list[int] = []
        self.labels: list[int] = []
        self.colours: list[np.ndarray] = []

    def add(self, label: int) -> bool:
        """Draws a shape where it hides no earlier one; False if no such place was found."""
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
        # Up to a quarter of the diameter may stick out of the picture.
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
    """Draws picture ``index`` of a split; it depends on these arguments and nothing else.

    Shapes are drawn one over the other. One that would leave an earlier shape, or itself, less
    visible than :data:`MIN_VISIBLE_FRACTION` and :data:`MIN_VISIBLE_PIXELS` is placed anew, and
    left out if no place is found: no shape is in the picture that is not in ``instances``.

    Args:
        seed (int): Seed of the data set, non-negative.
        split (str): 'train' or 'val'; each has random streams of its own.
        index (int): Number of the picture in the split, from 0.
        size (tuple[int, int]): Height and width, each at least 32. Defaults to (128, 128).
        max_objects (int): The picture has 1 to this many shapes. Defaults to 4.
        label (int, optional): Draw exactly one shape, of this class. Defaults to None.

    Returns:
        Scene: The picture, its background and its shapes.

    Raises:
        ValueError: An argument is outside what is allowed.

    Example:
        >>> scene = render_scene(seed=0, split='train', index=0)
        >>> scene.image.shape
        (128, 128, 3)
    """
    _check_drawing(seed, size, max_objects)
    _check_int('index', index, 0)
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


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Returns a picture's COCO annotations; masks as compressed RLE, the counts a str."""
    # Classification needs no masks, so a machine without mmdet can do without pycocotools.
    from pycocotools import mask as mask_utils

    annotations = []
    for offset, instance in enumerate(scene.instances):
        rle = mask_utils.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
        segmentation = dict(size=list(rle['size']), counts=rle['counts'].decode('ascii'))
        annotation = dict(id=first_id + offset, image_id=image_id, category_id=instance.label + 1)
        annotation |= dict(bbox=instance.bbox, area=instance.area, iscrowd=0)
        annotations.append(annotation | dict(segmentation=segmentation))
    return annotations


def write_split(
    root: str | Path,
    config: ShapesConfig,
    split: str,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, int]:
    """Writes one split into a directory.

    Detection gives ``<root>/<split>/000000.png, ...`` and
    ``<root>/annotations/instances_<split>.json``; classification gives
    ``<root>/<split>/<class>/000000.png, ...`` with the classes in turn.

    Args:
        root (str | Path): Directory to write into; made where absent.
        config (ShapesConfig): What to write.
        split (str): 'train' or 'val'.
        track (callable, optional): Wraps the iteration over the pictures, to show progress.
            Defaults to iter.

    Returns:
        dict[str, int]: Number of shapes of each class.

    Raises:
        OSError: A file could not be written.
        ValueError: ``split`` is neither 'train' nor 'val'.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; allowed: {", ".join(SPLITS)}')
    root, detection = Path(root), config.task == 'detection'
    height, width = config.size
    num_images = config.num_train if split == 'train' else config.num_val
    for folder in [''] if detection else CLASSES:
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    images, annotations, labels = [], [], Counter()
    for index in track(range(num_images)):
        label = None if detection else index % len(CLASSES)
        scene = render_scene(config.seed, split, index, config.size, config.max_objects, label)
        name = f'{index:06d}.png'
        path = root / split / ('' if detection else CLASSES[label]) / name
        if not cv2.imwrite(str(path), scene.image[..., ::-1]):
            raise OSError(f'could not write {path}')
        labels.update(instance.label for instance in scene.instances)
        if detection:
            images.append(dict(id=index + 1, file_name=name, height=height, width=width))
            annotations += _annotations(scene, index + 1, len(annotations) + 1)
    if detection:
        # Only what determines this split, so that num_val does not change the training file.
        about = {k: v for k, v in config.to_dict().items() if k not in ('num_train', 'num_val')}
        about |= dict(description='Rendered shapes', split=split, num_images=num_images)
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
        content = dict(info=about, licenses=[], images=images, annotations=annotations)
        content['categories'] = categories
        (root / 'annotations').mkdir(exist_ok=True)
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content) + '\n', encoding='ascii')
    return {name: labels[i] for i, name in enumerate(CLASSES)}
