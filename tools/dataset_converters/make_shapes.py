"""Makes a data set of rendered shapes, in COCO format or as an image folder.

Detection and instance segmentation (COCO format, the default)::

    OUT_DIR/train/000000.png ...    OUT_DIR/annotations/instances_train.json
    OUT_DIR/val/000000.png ...      OUT_DIR/annotations/instances_val.json

Classification::

    OUT_DIR/train/<class>/000000.png ...    OUT_DIR/val/<class>/000000.png ...

The same arguments give the same data set. OUT_DIR is either absent or complete: everything is
written into a hidden directory beside it, which is renamed at the end. ``OUT_DIR/make_shapes.json``
holds the arguments; a second call with the same ones does nothing.

Example::

    python tools/dataset_converters/make_shapes.py data/shapes --num-train 800 --num-val 100
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mmrecur.datasets.shapes import CLASSES, SPLITS, TASKS, ShapesConfig, write_split

MANIFEST = 'make_shapes.json'


def parse_args(argv: list[str] | None = None) -> tuple[Path, ShapesConfig, bool]:
    """Returns the output directory, what to make, and whether to replace what is there."""
    default = ShapesConfig()
    parser = argparse.ArgumentParser(
        description='Make a data set of rendered shapes (COCO format or image folder).'
    )
    parser.add_argument('out_dir', type=Path, help='directory to make')
    for split, count in (('train', default.num_train), ('val', default.num_val)):
        parser.add_argument(
            f'--num-{split}', type=int, default=count, metavar='N',
            help=f'pictures in {split} (default: %(default)s)',
        )  # fmt: skip
    parser.add_argument(
        '--size', type=int, nargs='+', default=default.size, metavar='PIXELS',
        help='side of a square picture, or height and width (default: 128)',
    )  # fmt: skip
    parser.add_argument(
        '--max-objects', type=int, default=default.max_objects, metavar='N',
        help='a picture holds 1 to N shapes; detection only (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=default.seed, help='of the draw (default: %(default)s)')
    parser.add_argument(
        '--task', choices=TASKS, default=default.task,
        help='detection: COCO format; classification: a folder for each class (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--force', action='store_true',
        help='make it anew where OUT_DIR already holds a data set that this script made',
    )  # fmt: skip
    args = parser.parse_args(argv)
    size = tuple(args.size) * 2 if len(args.size) == 1 else tuple(args.size)
    try:
        config = ShapesConfig(args.num_train, args.num_val, size, args.max_objects, args.seed, args.task)
    except ValueError as error:
        parser.error(str(error))
    # Resolved, so that a link to a directory is followed, not replaced.
    return args.out_dir.resolve(), config, args.force


def read_manifest(out_dir: Path) -> dict[str, Any] | None:
    """Returns the manifest of a data set that this script made; None if nothing is there.

    Raises:
        FileExistsError: There is something that this script did not make, or not alone.
    """
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    try:
        manifest = json.loads((out_dir / MANIFEST).read_text())
        manifest['arguments']['task'], manifest['counts']['train'], manifest['counts']['val']
    except (OSError, ValueError, TypeError, KeyError):
        raise FileExistsError(
            f'{out_dir} exists and was not made by make_shapes; it is left alone: choose another directory'
        ) from None
    foreign = {path.name for path in out_dir.iterdir()} - {MANIFEST, 'annotations', *SPLITS}
    if foreign:
        raise FileExistsError(
            f'{out_dir} also holds {", ".join(sorted(foreign))}, which make_shapes did not make; '
            'it is left alone: move that away or choose another directory'
        )
    return manifest


def check_same(out_dir: Path, manifest: dict[str, Any], config: ShapesConfig) -> None:
    """Raises FileExistsError unless the directory is the whole data set that is asked for."""
    there, asked = manifest['arguments'], config.to_dict()
    differences = [
        f'{name} (there {there.get(name)!r}, asked {asked.get(name)!r})'
        for name in sorted(there.keys() | asked.keys())
        if there.get(name) != asked.get(name)
    ]
    if differences:
        raise FileExistsError(
            f'{out_dir} holds a data set that differs in {", ".join(differences)}; '
            'choose another directory, or replace it with --force'
        )
    for split in SPLITS:
        found = sum(1 for _ in (out_dir / split).rglob('*.png'))
        if found != there[f'num_{split}']:
            raise FileExistsError(
                f'{out_dir / split} holds {found} images instead of {there[f"num_{split}"]}; '
                'make the data set anew with --force'
            )
        annotations = out_dir / 'annotations' / f'instances_{split}.json'
        if config.task == 'detection' and not annotations.is_file():
            raise FileExistsError(f'{annotations} is missing; make the data set anew with --force')


def write(root: Path, config: ShapesConfig) -> dict[str, Any]:
    """Writes the data set and its manifest into a new directory; returns the manifest."""
    root.mkdir()
    console = Console(stderr=True)
    counts = {}
    for split in SPLITS:
        show = partial(track, description=f'{split:5}', console=console, disable=not console.is_terminal)
        counts[split] = write_split(root, config, split, show)
    manifest = dict(generator='make_shapes', arguments=config.to_dict(), counts=counts)
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')
    return manifest


def publish(new: Path, out_dir: Path, old: Path, replace: bool) -> None:
    """Renames a finished directory into place; with ``replace`` what is there becomes ``old``.

    Without it, the system refuses to rename onto a directory that is not empty.
    """
    if replace and out_dir.exists():
        os.rename(out_dir, old)
    try:
        os.rename(new, out_dir)
    except OSError:
        if old.exists():
            os.rename(old, out_dir)
        raise


def make(out_dir: Path, config: ShapesConfig, force: bool) -> tuple[dict[str, Any], bool]:
    """Makes the data set unless it is there; returns its manifest and whether it was made.

    Raises:
        FileExistsError: The directory holds something else.
        OSError: A file could not be written.
    """
    manifest = read_manifest(out_dir)
    if manifest is not None and not force:
        check_same(out_dir, manifest, config)
        return manifest, False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{out_dir.name}.partial-'
    for left in sorted(out_dir.parent.glob(f'{prefix}*')):
        print(f'note: {left} was left by a killed run: remove it unless another run is going')
    # A subdirectory gets the usual permissions; the temporary one itself is private.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out_dir.parent) as scratch:
        manifest = write(Path(scratch, 'new'), config)
        # Another process may have finished the same data set meanwhile.
        existing = read_manifest(out_dir)
        if existing is not None and not force:
            check_same(out_dir, existing, config)
            return existing, False
        publish(Path(scratch, 'new'), out_dir, Path(scratch, 'old'), replace=force)
    return manifest, True


def report(out_dir: Path, manifest: dict[str, Any], made: bool) -> None:
    """Prints where the data set is and how many shapes of each class it holds."""
    arguments = manifest['arguments']
    state = 'made' if made else 'already there with the same arguments, nothing to do'
    print(f'{out_dir}: {state}')
    print(f'{"":16}' + ''.join(f'{name:>10}' for name in ('images', *CLASSES)))
    for split in SPLITS:
        values = [arguments[f'num_{split}'], *manifest['counts'][split].values()]
        print(f'  {split:14}' + ''.join(f'{value:>10}' for value in values))
    for split in SPLITS:
        print(f'{split} images: {out_dir / split}')
        if arguments['task'] == 'detection':
            print(f'{split} annotations: {out_dir / "annotations" / f"instances_{split}.json"}')


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    out_dir, config, force = parse_args(argv)
    try:
        manifest, made = make(out_dir, config, force)
    except OSError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    report(out_dir, manifest, made)
    return 0


if __name__ == '__main__':
    sys.exit(main())
