"""Write CIFAR-10 as image files in class folders.

    python tools/dataset_converters/cifar_to_folders.py cifar-10-binary.tar.gz data/cifar10_folders
    python tools/dataset_converters/cifar_to_folders.py cifar10_jpeg.zip data/cifar10_folders

SRC is the binary version from https://www.cs.toronto.edu/~kriz/cifar.html, whose images are written as PNG
files, or a zip file with image files under ``train/CLASS/`` and ``test/CLASS/``.
"""

from __future__ import annotations

import _before_torch  # noqa: F401

import argparse
import re
import shutil
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
RECORD = 1 + 3 * 32 * 32

#: Path below the output folder, and content of the file.
Image = tuple[str, bytes]


def from_binary(path: Path) -> Iterator[Image]:
    """Yield the images of the binary version, whose records contain a label and the planes R, G, B."""
    with tarfile.open(path) as archive:
        for member in archive:
            match = re.search(r'(data_batch_\d|test_batch)\.bin$', member.name)
            if not match:
                continue
            split = 'test' if match[1] == 'test_batch' else 'train'
            data = np.frombuffer(archive.extractfile(member).read(), np.uint8).reshape(-1, RECORD)
            for index, label in enumerate(data[:, 0]):
                rgb = data[index, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
                png = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
                yield f'{split}/{CLASSES[label]}/{match[1]}_{index:04d}.png', png


def from_zip(path: Path) -> Iterator[Image]:
    """Yield the image files in class folders at any depth."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            match = re.search(r'(?:^|/)((?:train|test)/(\w+)/[\w.-]+\.(?:jpe?g|png))$', name)
            if match and match[2] in CLASSES:
                yield match[1], archive.read(name)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, help='archive to read')
    parser.add_argument('out', type=Path, help='folder to write, which must not exist')
    args = parser.parse_args(argv)
    if not args.src.is_file():
        sys.exit(f'error: {str(args.src)!r} does not exist')
    if args.out.exists():
        sys.exit(f'error: {str(args.out)!r} exists; allowed: a new folder')
    is_zip, is_tar = zipfile.is_zipfile(args.src), tarfile.is_tarfile(args.src)
    if not is_zip and not is_tar:
        sys.exit(f'error: {str(args.src)!r} is neither a tar nor a zip file')
    # The folder gets its name when it is complete.
    unfinished = args.out.with_name(args.out.name + '.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)
    counts: Counter[str] = Counter()
    for name, content in (from_zip if is_zip else from_binary)(args.src):
        path = unfinished / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        counts[name.split('/')[0]] += 1
    if not counts:
        sys.exit(f'error: {str(args.src)!r} contains no images of CIFAR-10')
    unfinished.rename(args.out)
    print(f'Wrote {counts["train"]} training and {counts["test"]} test images to {args.out}')


if __name__ == '__main__':
    main()
