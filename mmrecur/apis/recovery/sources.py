"""Find the images that a recovery reads."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmrecur.apis.specs import registry_scope
from mmrecur.apis.start import quiet_libraries
from mmrecur.engine.randomness import own_randomness
from mmrecur.errors import ToolError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
ALLOWED = (
    "allowed: a folder of images, a glob such as 'photos/*.jpg', a COCO annotation file (.json), or 'train' "
    "for the config's training images"
)

#: Path of an image, or a data set that holds its images as arrays, and an index.
Entry = str | tuple[Any, int]


def find_images(cfg: Config, source: str | Path) -> list[Entry]:
    """Find images without reading them.

    Args:
        cfg (Config): Config whose data sets tell where images are.
        source (str or Path): See :class:`mmrecur.apis.recovery.images.RecoveryImages`.

    Returns:
        list[Entry]: Paths in alphabetical order, or the images in the order of the annotation file or of the
        training data.

    Raises:
        ToolError: If the source does not exist, holds no images or does not fit the config.
    """
    place = os.path.expanduser(os.fspath(source))
    if place == 'train':
        return _training_images(cfg)
    if os.path.isfile(place):
        if place.lower().endswith('.json'):
            return _coco_images(cfg, Path(place))
        if place.lower().endswith(SUFFIXES):
            return [place]
        raise ToolError(f'--recover {str(source)!r} is neither an image nor a .json file; {ALLOWED}')
    if not os.path.isdir(place) and not glob.has_magic(place):
        raise ToolError(f'--recover {str(source)!r} does not exist; {ALLOWED}')
    matches = [place] if os.path.isdir(place) else glob.glob(place, recursive=True)
    found = sorted({path for match in matches for path in _images_below(match)})
    if not found:
        raise ToolError(f'--recover {str(source)!r} has no images ({", ".join(SUFFIXES)}); {ALLOWED}')
    return list[Entry](found)


def _images_below(place: str) -> Iterator[str]:
    """Yield a path, or the images below a folder, if they have a usual suffix and are not hidden."""
    if not os.path.isdir(place):
        if place.lower().endswith(SUFFIXES):
            yield place
        return
    visited = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        folders.sort()
        if os.path.realpath(folder) in visited:  # a link to a folder above it
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                yield os.path.join(folder, name)


def _training_images(cfg: Config) -> list[Entry]:
    if cfg.get('train_dataloader') is None:
        raise ToolError(f"--recover 'train': config {cfg.filename!r} has no train_dataloader; {ALLOWED}")
    entries: list[Entry] = []
    for part in dataset_configs(cfg, 'train'):
        # filters would read labels
        part = {key: value for key, value in part.items() if key != 'filter_cfg'}
        if 'pipeline' in part:
            part['pipeline'] = []
        with registry_scope(cfg.get('default_scope')), own_randomness(), quiet_libraries():
            try:
                dataset = DATASETS.build(part)
            except FileNotFoundError as error:
                raise ToolError(f"--recover 'train': {error}") from error
        for i in range(len(dataset)):
            info = dataset.get_data_info(i) if hasattr(dataset, 'get_data_info') else {}
            if 'img_path' not in info and 'img' not in info:
                kind = type(dataset).__name__
                raise ToolError(f"--recover 'train': {kind} is not a data set of images; {ALLOWED}")
            entries.append(info['img_path'] if info.get('img_path') else (dataset, i))
    return list(dict.fromkeys(entries))


def _coco_images(cfg: Config, path: Path) -> list[Entry]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        names = [image['file_name'] for image in content['images']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(
            f"--recover {str(path)!r} is not a COCO annotation file, which lists 'images', each with "
            f'"file_name" ({type(error).__name__}: {error})'
        ) from error
    folders = list(dict.fromkeys([*_configured_folders(cfg, path), *_near_folders(path)]))
    samples = {names[i * (len(names) - 1) // 2] for i in range(3)} if names else set()
    for folder in folders:
        if any((folder / name).is_file() for name in samples):
            return list(dict.fromkeys(str(folder / name) for name in names))
    if not names:
        return []
    places = ''.join(f'\n  {folder}' for folder in folders)
    raise ToolError(f'--recover {str(path)!r}: the image {names[0]!r} is in none of the folders{places}')


def _configured_folders(cfg: Config, path: Path) -> Iterator[Path]:
    """Yield the image folders of the config's data sets that have this annotation file."""
    for kind in ('train', 'val', 'test'):
        for part in dataset_configs(cfg, kind):
            root, file, prefix = part.get('data_root') or '', part.get('ann_file'), part.get('data_prefix')
            if isinstance(file, str) and os.path.realpath(os.path.join(root, file)) == os.path.realpath(path):
                if isinstance(prefix, dict):
                    prefix = prefix.get('img') or prefix.get('img_path')
                yield Path(root, prefix or '')


def _near_folders(path: Path) -> Iterator[Path]:
    """Yield folders beside and above an annotation file; for instances_val.json, such as images/val."""
    words = [*reversed(path.stem.split('_')), 'images']
    for base in path.absolute().parents[:3]:
        yield from (base, *(base / word for word in words), *(base / 'images' / word for word in words[:-1]))


def dataset_configs(cfg: Config, kind: str) -> list[dict[str, Any]]:
    """Return the configs of the innermost data sets of a loader, without wrappers such as RepeatDataset.

    Args:
        cfg (Config): The config.
        kind (str): 'train', 'val' or 'test'.

    Returns:
        list[dict]: The configs; empty if there is no such loader.
    """
    loader = cfg.get(f'{kind}_dataloader')
    return [] if loader is None else list(_innermost(loader['dataset']))


def _innermost(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = dataset.get('datasets') or [dataset.get('dataset')]
    if not isinstance(parts[0], dict):
        yield dataset
        return
    for part in parts:
        yield from _innermost(part)
