"""Checkpoints survive a kill and a full disk."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from mmrecur.engine import file_backend
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import FileWriteError


def write_forever(path, size):
    backend = AtomicLocalBackend()
    while True:
        for letter in (b'a', b'b'):
            backend.put(letter * size, path)


def test_killed_writer_leaves_a_whole_file(tmp_path):
    path, size = tmp_path / 'epoch_1.pth', 4_000_000
    context = multiprocessing.get_context('fork')
    for delay in (0.02, 0.035, 0.05, 0.065):
        writer = context.Process(target=write_forever, args=(path, size))
        writer.start()
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        content = path.read_bytes()
        assert len(content) == size and len(set(content)) == 1


def test_outdated_checkpoint_goes_when_the_next_is_there(tmp_path):
    # MMEngine makes a new backend for each write and deletes before the write.
    old, new, text = (tmp_path / name for name in ('epoch_1.pth', 'epoch_2.pth', 'notes.txt'))
    AtomicLocalBackend().put(b'1', old)
    AtomicLocalBackend().remove(old)
    assert old.exists()
    AtomicLocalBackend().put_text('text', text)
    assert old.exists()
    AtomicLocalBackend().put(b'2', new)
    assert not old.exists() and new.read_bytes() == b'2'
    AtomicLocalBackend().remove(text)
    assert not text.exists()


def test_outdated_checkpoint_that_is_written_again_stays(tmp_path):
    path, other = tmp_path / 'best.pth', tmp_path / 'deep' / 'other.pth'
    AtomicLocalBackend().put(b'1', path)
    AtomicLocalBackend().remove(path)
    AtomicLocalBackend().put(b'2', path)
    AtomicLocalBackend().put(b'3', other)
    assert path.read_bytes() == b'2' and other.read_bytes() == b'3'


# A file above the size limit raises the same exception as a full disk, with another error number.
FULL_DISK = """
import resource, sys
from pathlib import Path
from mmrecur.engine.file_backend import AtomicLocalBackend
from mmrecur.errors import FileWriteError
old, new = Path(sys.argv[1]) / 'epoch_1.pth', Path(sys.argv[1]) / 'epoch_2.pth'
AtomicLocalBackend().put(b'1' * 1000, old)
AtomicLocalBackend().remove(old)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for content in (b'2' * 200_000, b'2' * 5_000_000):
    try:
        AtomicLocalBackend().put(content, new)
    except FileWriteError as error:
        print(error)
print(sorted(path.name for path in new.parent.iterdir()))
AtomicLocalBackend().put(b'2' * 1000, new)
print(sorted(path.name for path in new.parent.iterdir()))
"""


def test_without_room_nothing_is_left_and_nothing_lost(tmp_path):
    result = subprocess.run(
        [sys.executable, '-c', FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    *errors, after_failure, after_success = result.stdout.splitlines()
    assert len(errors) == 2
    for error, size in zip(errors, ('0.2', '5.0')):
        assert error.startswith(f"cannot write '{tmp_path / 'epoch_2.pth'}': File too large")
        assert f'({size} MB are needed' in error
    assert after_failure == "['epoch_1.pth']" and after_success == "['epoch_2.pth']"


def test_outdated_checkpoint_stays_if_the_next_is_not_read_back(tmp_path, monkeypatch):
    def lose_a_byte(path, content):
        path.write_bytes(content[:5] + b'?' + content[6:])

    old, new = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    AtomicLocalBackend().put(b'1', old)
    AtomicLocalBackend().remove(old)
    with monkeypatch.context() as patch:
        patch.setattr(file_backend, '_write', lose_a_byte)
        with pytest.raises(FileWriteError, match=r'epoch_2\.pth.*differs from the written'):
            AtomicLocalBackend().put(b'0123456789', new)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
    AtomicLocalBackend().put(b'2', new)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_2.pth']
