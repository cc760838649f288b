"""tools/dataset_converters/cifar_to_folders.py: both archive formats, and no incomplete folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np

TOOL = 'dataset_converters/cifar_to_folders.py'


def write_binary(path: Path) -> np.ndarray:
    """Write two batches of three images in the binary format; return the pixels by batch."""
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (2, 3, 3, 32, 32), dtype=np.uint8)
    with tarfile.open(path, 'w:gz') as archive:
        for name, batch in zip(('data_batch_1', 'test_batch'), pixels):
            content = b''.join(bytes([label]) + image.tobytes() for label, image in zip((0, 9, 3), batch))
            member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}.bin')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return pixels


def test_binary_version_keeps_every_pixel(workshop, tmp_path: Path) -> None:
    pixels = write_binary(tmp_path / 'binary.tar.gz')
    output = workshop.run(TOOL, tmp_path / 'binary.tar.gz', tmp_path / 'out', own=True)
    assert 'Wrote 3 training and 3 test images' in output
    image = cv2.imread(str(tmp_path / 'out/train/truck/data_batch_1_0001.png'))
    assert np.array_equal(image[..., ::-1].transpose(2, 0, 1), pixels[0, 1])
    image = cv2.imread(str(tmp_path / 'out/test/cat/test_batch_0002.png'))
    assert np.array_equal(image[..., ::-1].transpose(2, 0, 1), pixels[1, 2])


def test_zip_of_class_folders_is_unpacked(workshop, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        archive.writestr('some/where/train/ship/a.jpg', b'1')
        archive.writestr('some/where/test/dog/b.png', b'2')
        archive.writestr('some/where/test/dog/../../../../evil.png', b'3')
        archive.writestr('README.txt', b'4')
    workshop.run(TOOL, tmp_path / 'images.zip', tmp_path / 'out')
    files = {str(p.relative_to(tmp_path / 'out')): p.read_bytes() for p in (tmp_path / 'out').rglob('*.*')}
    assert files == {'train/ship/a.jpg': b'1', 'test/dog/b.png': b'2'}


def test_refusals(workshop, tmp_path: Path) -> None:
    (tmp_path / 'text').write_text('no archive')
    with zipfile.ZipFile(tmp_path / 'empty.zip', 'w') as archive:
        archive.writestr('README.txt', b'')
    for source, message in [
        ('text', 'neither a tar nor a zip file'),
        ('missing', 'does not exist'),
        ('empty.zip', 'contains no images of CIFAR-10'),
    ]:
        assert message in workshop.run(TOOL, tmp_path / source, tmp_path / 'out', code=1)
        assert not (tmp_path / 'out').exists()
    (tmp_path / 'out').mkdir()
    output = workshop.run(TOOL, tmp_path / 'empty.zip', tmp_path / 'out', code=1)
    assert 'exists; allowed: a new folder' in output
