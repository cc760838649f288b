"""Write a data set of rendered shapes, in COCO format or as class folders.

The same arguments give the same data set. OUT_DIR is either absent or complete: files are written into a
hidden directory beside it, which is renamed at the end. A second call with the same arguments does nothing.

    python tools/dataset_converters/make_shapes.py data/shapes --num-train 800 --num-val 100
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mmrecur.datasets.shapes import CLASSES, SPLITS
from mmrecur.datasets.shapes_dataset import TASKS, ShapesConfig, make_shapes


def parse_args(argv: list[str] | None = None) -> tuple[Path, ShapesConfig, bool]:
    """Return the output directory, the arguments of the data set, and whether to replace an existing one."""
    default = ShapesConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out_dir', type=Path, help='directory of the data set')
    for split, count in (('train', default.num_train), ('val', default.num_val)):
        parser.add_argument(
            f'--num-{split}', type=int, default=count, metavar='N',
            help=f'number of pictures in {split} (default: %(default)s)',
        )  # fmt: skip
    parser.add_argument(
        '--size', type=int, nargs='+', default=default.size, metavar='PIXELS',
        help='side of square pictures, or height and width (default: 128)',
    )  # fmt: skip
    parser.add_argument(
        '--max-objects', type=int, default=default.max_objects, metavar='N',
        help='maximum number of shapes in a picture; detection only (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--seed', type=int, default=default.seed, help='seed of the pictures (default: %(default)s)'
    )
    parser.add_argument(
        '--task', choices=TASKS, default=default.task,
        help='detection: COCO format; classification: a folder for each class (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--force', action='store_true',
        help='replace a data set in OUT_DIR that this script made',
    )  # fmt: skip
    args = parser.parse_args(argv)
    size = tuple(args.size) * 2 if len(args.size) == 1 else tuple(args.size)
    try:
        config = ShapesConfig(args.num_train, args.num_val, size, args.max_objects, args.seed, args.task)
    except ValueError as error:
        parser.error(str(error))
    # Resolve links, so that the target is replaced and not the link.
    return args.out_dir.resolve(), config, args.force


def report(out_dir: Path, manifest: dict[str, Any], made: bool) -> None:
    """Print the paths of a data set and the number of shapes of each class."""
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
    """Run the script; return its exit status."""
    out_dir, config, force = parse_args(argv)
    try:
        console = Console(stderr=True)
        show = partial(track, console=console, disable=not console.is_terminal)
        manifest, made = make_shapes(out_dir, config, force, show)
    except OSError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    report(out_dir, manifest, made)
    return 0


if __name__ == '__main__':
    sys.exit(main())
