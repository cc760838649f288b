"""One training at a time in a work directory."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from mmrecur.engine.work_dir import lock_work_dir
from mmrecur.errors import WorkDirInUseError

# Locks the directory, forks a child that outlives the process, and waits.
HOLDER = """
import os, sys, time
from mmrecur.engine.work_dir import lock_work_dir
lock_work_dir(sys.argv[1])
lock_work_dir(sys.argv[1])  # a second call does nothing
if os.fork() == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_the_lock_ends_with_its_process_not_with_its_children(tmp_path, monkeypatch):
    work_dir = tmp_path / 'run'
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(work_dir)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert int(holder.stdout.readline()) == holder.pid
        with pytest.raises(WorkDirInUseError) as caught:
            lock_work_dir(work_dir)
        message = str(caught.value)
        for part in (work_dir, f'process {holder.pid} on {socket.gethostname()}, since 20', '--work-dir'):
            assert str(part) in message
        lock_work_dir(tmp_path / 'other')
        # Only the first process of a job takes the lock.
        for launcher, name in dict(pytorch='RANK', slurm='SLURM_PROCID').items():
            monkeypatch.setenv(name, '1')
            lock_work_dir(work_dir, launcher)
            monkeypatch.setenv(name, '0')
            with pytest.raises(WorkDirInUseError):
                lock_work_dir(work_dir, launcher)
        partial = work_dir / '.epoch_3.pth.123.partial'
        partial.touch()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock_work_dir(work_dir)
        assert not partial.exists()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
