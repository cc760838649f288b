"""Checkpoint files: data is read, anything else is refused without being executed."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmrecur.checkpoint.io import (
    CheckpointError,
    find_checkpoint_to_resume,
    load_checkpoint_file,
)

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def save(content, path, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_what_a_runner_saves_is_read(tmp_path, zipped):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = dict(
        state_dict={'w': torch.arange(3.0)},
        message_hub=dict(log_scalars={'loss': history}, runtime_info=dict(best=np.float64(0.5))),
        meta=dict(palette=np.arange(6).reshape(2, 3), classes=('a', 'b'), part=slice(1, 2)),
    )
    read = load_checkpoint_file(save(content, tmp_path / 'a.pth', zipped))
    assert torch.equal(read['state_dict']['w'], torch.arange(3.0))
    assert read['message_hub']['log_scalars']['loss'].statistics('mean') == 2
    assert read['message_hub']['runtime_info']['best'] == 0.5
    assert read['meta']['palette'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read['meta']['classes'] == ('a', 'b') and read['meta']['part'] == slice(1, 2)


class Command:
    """What pickle would turn into os.mkdir(path)."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Evaluation(Command):
    def __reduce__(self):
        return eval, (f'__import__("os").mkdir({str(self.path)!r})',)


class Reach:
    """A way to the builtins of a function by names that are allowed for other uses."""

    def __init__(self, path):
        pass

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@FORMATS
@pytest.mark.parametrize('payload', [Command, Evaluation, Reach])
def test_code_is_refused_and_not_run(tmp_path, zipped, payload):
    proof = tmp_path / 'executed'
    content = dict(state_dict={'w': torch.ones(2)}, meta=dict(extra=payload(proof)))
    path = save(content, tmp_path / 'evil.pth', zipped)
    with pytest.raises(CheckpointError, match='carries code') as caught:
        load_checkpoint_file(path)
    assert str(path) in str(caught.value)
    assert not proof.exists()


def test_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    proof = tmp_path / 'executed'
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f'evil{protocol}.pth'
        path.write_bytes(pickle.dumps({'state_dict': Command(proof)}, protocol=protocol))
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint_file(path)
        assert str(path) in str(caught.value)
        assert not proof.exists()


def test_object_arrays_do_not_smuggle(tmp_path):
    array = np.array([Command(tmp_path / 'executed')], dtype=object)
    with pytest.raises(CheckpointError):
        load_checkpoint_file(save({'a': array}, tmp_path / 'evil.pth'))
    assert not (tmp_path / 'executed').exists()


@FORMATS
def test_truncated_at_any_length_is_refused(tmp_path, zipped):
    whole = save({'w': torch.randn(300)}, tmp_path / 'whole.pth', zipped).read_bytes()
    path = tmp_path / 'short.pth'
    for length in [0, 1, 2, 10, *range(100, len(whole), 251), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match='truncated') as caught:
            load_checkpoint_file(path)
        assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / 'text.pth'
    text.write_text('not a checkpoint at all\n')
    for path in (text, save([1, 2], tmp_path / 'list.pth')):
        with pytest.raises(CheckpointError, match='refused'):
            load_checkpoint_file(path)
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        load_checkpoint_file(tmp_path / 'absent.pth')


def test_no_way_around_in_a_process_with_safe_loading(tmp_path):
    proof = tmp_path / 'executed'
    path = save({'state_dict': Command(proof)}, tmp_path / 'evil.pth')
    config = dict(config=f'import os\nos.mkdir({str(proof)!r})')
    save(dict(state_dict={}, meta=config), tmp_path / 'mmcv.pth')
    program = f"""
import functools, http.server, pickle, threading, torch
from mmengine.runner.checkpoint import _load_checkpoint
from mmrecur.checkpoint.io import CheckpointError, use_safe_loading
use_safe_loading()
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory={str(tmp_path)!r})
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f'http://127.0.0.1:{{server.server_port}}/evil.pth'
for name in ({str(path)!r}, url, 's3://bucket/evil.pth', 'pavi://evil.pth'):
    try:
        _load_checkpoint(name, map_location='cpu')
    except CheckpointError as error:
        assert name in str(error), error
    else:
        raise SystemExit(name + ' was loaded')
try:
    torch.load({str(path)!r}, weights_only=False)
except pickle.UnpicklingError:
    pass
else:
    raise SystemExit('torch.load')
# MMEngine would run this text when it resumes.
assert 'config' not in _load_checkpoint({str(tmp_path / 'mmcv.pth')!r})['meta']
print('refused')
"""
    env = os.environ | {'TORCH_HOME': str(tmp_path / 'hub'), 'no_proxy': '127.0.0.1'}
    result = subprocess.run(
        [sys.executable, '-c', program], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip().endswith('refused'), result.stdout + result.stderr
    assert not proof.exists()


def test_finds_where_a_run_got_to(tmp_path):
    assert find_checkpoint_to_resume(tmp_path) is None
    for index, name in enumerate(['epoch_9.pth', 'epoch_10.pth', 'best_a_epoch_11.pth']):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (index, index))
    # Nothing names one, or what is named is gone: the newest that is a state of training.
    assert find_checkpoint_to_resume(tmp_path).name == 'epoch_10.pth'
    pointer = tmp_path / 'last_checkpoint'
    for text in ('', str(tmp_path / 'epoch_8.pth')):
        pointer.write_text(text)
        assert find_checkpoint_to_resume(tmp_path).name == 'epoch_10.pth'
    # Named by a path of before the directory was moved.
    pointer.write_text('/no/longer/there/epoch_9.pth')
    assert find_checkpoint_to_resume(tmp_path) == tmp_path / 'epoch_9.pth'
