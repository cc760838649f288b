"""Checkpoints survive a kill."""

import multiprocessing
import os
import signal
import time

from mmrecur.engine.file_backend import AtomicLocalBackend


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
    # As MMEngine does: a new backend for each write, deletion before the write.
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
