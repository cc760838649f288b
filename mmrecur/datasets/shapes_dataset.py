"""Write data sets of rendered shapes, in COCO format or as class folders.

Detection and instance segmentation (COCO format)::

    OUT_DIR/train/000000.png ...    OUT_DIR/annotations/instances_train.json
    OUT_DIR/val/000000.png ...      OUT_DIR/annotations/instances_val.json

Classification::

    OUT_DIR/train/<class>/000000.png ...    OUT_DIR/val/<class>/000000.png ...
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrecur.datasets.shapes import CLASSES, REVISION, SPLITS, Scene, check_drawing, check_int, render_scene

TASKS = ('detection', 'classification')
MANIFEST = 'make_shapes.json'
#: Wraps an iteration, named by ``description``, to show its progress.
Track = Callable[..., Iterable[int]]


def _no_progress(indices: Iterable[int], description: str) -> Iterable[int]:
    return indices


@dataclass(frozen=True)
class ShapesConfig:
    """Arguments of a data set of shapes.

    Args:
        num_train (int): Number of training images, at least 1. Defaults to 800.
        num_val (int): Number of validation images, at least 1. Defaults to 100.
        size (tuple[int, int]): Height and width in pixels, each at least 32.
            Defaults to (128, 128).
        max_objects (int): Maximum number of shapes in a picture. Pictures for classification have one shape.
            Defaults to 4.
        seed (int): Seed of the pictures, non-negative. Defaults to 0.
        task (str): 'detection' or 'classification'. Defaults to 'detection'.

    Raises:
        ValueError: If an argument is not allowed.
    """

    num_train: int = 800
    num_val: int = 100
    size: tuple[int, int] = (128, 128)
    max_objects: int = 4
    seed: int = 0
    task: str = 'detection'

    def __post_init__(self) -> None:
        check_int('num_train', self.num_train, 1)
        check_int('num_val', self.num_val, 1)
        check_drawing(self.seed, self.size, self.max_objects)
        if self.task not in TASKS:
            raise ValueError(f'task is {self.task!r}; allowed: {", ".join(TASKS)}')
        object.__setattr__(self, 'size', tuple(self.size))

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that affect the task, and the revision of the renderer."""
        values = asdict(self) | {'size': list(self.size), 'revision': REVISION}
        if self.task == 'classification':
            del values['max_objects']
        return values


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Return the COCO annotations of a picture, with masks as compressed RLE."""
    # Imported here because classification works without pycocotools, which mmdet installs.
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
    """Write one split of a data set.

    Args:
        root (str | Path): Directory to write into; it is created if needed.
        config (ShapesConfig): Arguments of the data set.
        split (str): 'train' or 'val'.
        track (callable): Wraps the iteration over the pictures, to show progress. Defaults to iter.

    Returns:
        dict[str, int]: Number of shapes of each class.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If ``split`` is not allowed.
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
        # Leave out the sizes of the splits, so that num_val does not change the training file.
        about = {k: v for k, v in config.to_dict().items() if k not in ('num_train', 'num_val')}
        about |= dict(description='Rendered shapes', split=split, num_images=num_images)
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
        content = dict(info=about, licenses=[], images=images, annotations=annotations)
        content['categories'] = categories
        (root / 'annotations').mkdir(exist_ok=True)
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content) + '\n', encoding='ascii')
    return {name: labels[i] for i, name in enumerate(CLASSES)}


def _read_manifest(out_dir: Path) -> dict[str, Any] | None:
    """Return the manifest of a data set, or None if the directory is empty or absent.

    Raises:
        FileExistsError: If the directory contains anything that :func:`make_shapes` did not write.
    """
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    try:
        manifest = json.loads((out_dir / MANIFEST).read_text())
        manifest['arguments']['task'], manifest['counts']['train'], manifest['counts']['val']
    except (OSError, ValueError, TypeError, KeyError):
        raise FileExistsError(
            f'{out_dir} exists and was not made by make_shapes; choose another directory'
        ) from None
    foreign = {path.name for path in out_dir.iterdir()} - {MANIFEST, 'annotations', *SPLITS}
    if foreign:
        raise FileExistsError(
            f'{out_dir} also contains {", ".join(sorted(foreign))}, not made by make_shapes; '
            'move that away or choose another directory'
        )
    return manifest


def _check_same(out_dir: Path, manifest: dict[str, Any], config: ShapesConfig) -> None:
    """Raise FileExistsError unless the directory contains the complete data set of a config."""
    there, asked = manifest['arguments'], config.to_dict()
    differences = [
        f'{name} (there {there.get(name)!r}, asked {asked.get(name)!r})'
        for name in sorted(there.keys() | asked.keys())
        if there.get(name) != asked.get(name)
    ]
    if differences:
        raise FileExistsError(
            f'{out_dir} contains a data set that differs in {", ".join(differences)}; '
            'choose another directory, or replace it with --force'
        )
    for split in SPLITS:
        found = sum(1 for _ in (out_dir / split).rglob('*.png'))
        if found != there[f'num_{split}']:
            raise FileExistsError(
                f'{out_dir / split} holds {found} images instead of {there[f"num_{split}"]}; '
                'replace the data set with --force'
            )
        annotations = out_dir / 'annotations' / f'instances_{split}.json'
        if config.task == 'detection' and not annotations.is_file():
            raise FileExistsError(f'{annotations} is missing; replace the data set with --force')


def _write(root: Path, config: ShapesConfig, track: Track) -> dict[str, Any]:
    """Write a data set with its manifest into a new directory; return the manifest."""
    root.mkdir()
    counts = {split: write_split(root, config, split, partial(track, description=split)) for split in SPLITS}
    manifest = dict(generator='make_shapes', arguments=config.to_dict(), counts=counts)
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')
    return manifest


def _publish(new: Path, out_dir: Path, old: Path, replace: bool) -> None:
    """Rename a finished directory to ``out_dir``; with ``replace``, move an existing one to ``old``.

    Without ``replace``, the system refuses to overwrite a directory that is not empty.
    """
    if replace and out_dir.exists():
        os.rename(out_dir, old)
    try:
        os.rename(new, out_dir)
    except OSError:
        if old.exists():
            os.rename(old, out_dir)
        raise


def make_shapes(
    out_dir: Path,
    config: ShapesConfig,
    force: bool = False,
    track: Track = _no_progress,
    report: Callable[[str], None] = print,
) -> tuple[dict[str, Any], bool]:
    """Write a data set of shapes unless it exists.

    Everything is written into a hidden directory beside ``out_dir``, which is renamed at the end. ``out_dir``
    is therefore absent or complete. Its file ``make_shapes.json``, the manifest, contains the arguments.

    Args:
        out_dir (Path): Directory of the data set.
        config (ShapesConfig): Arguments of the data set.
        force (bool): Replace a data set that this function made before. Defaults to False.
        track (callable): Called with the indices of a split's pictures and ``description``; returns an
            iterable of the indices that shows progress. Defaults to no progress.
        report (callable): Called with a message for each directory that a killed run left. Defaults to print.

    Returns:
        tuple[dict, bool]: The manifest, and whether the data set was written by this call.

    Raises:
        FileExistsError: If the directory contains another data set or other files.
        OSError: If a file cannot be written.
    """
    manifest = _read_manifest(out_dir)
    if manifest is not None and not force:
        _check_same(out_dir, manifest, config)
        return manifest, False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{out_dir.name}.partial-'
    for left in sorted(out_dir.parent.glob(f'{prefix}*')):
        report(f'note: {left} was left by a killed run: remove it unless another run is active')
    # Write into a subdirectory: the temporary directory itself has private permissions.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out_dir.parent) as scratch:
        manifest = _write(Path(scratch, 'new'), config, track)
        # Another process may have finished the same data set in the meantime.
        existing = _read_manifest(out_dir)
        if existing is not None and not force:
            _check_same(out_dir, existing, config)
            return existing, False
        _publish(Path(scratch, 'new'), out_dir, Path(scratch, 'old'), replace=force)
    return manifest, True
