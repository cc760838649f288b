"""Checkpoint files: data is read, anything else is refused without being executed."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmrecur.checkpoint.io import load_checkpoint_file, use_safe_loading
from mmrecur.errors import CheckpointError, CodeInCheckpointError, DamagedCheckpointError

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
    """An object that pickle would turn into os.mkdir(path)."""

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


def test_code_is_refused_by_a_torch_that_hides_its_safe_names(tmp_path, monkeypatch):
    monkeypatch.setattr('mmrecur.checkpoint.safe_types.torch_safe_names', lambda: None)
    proof = tmp_path / 'executed'
    with pytest.raises(DamagedCheckpointError, match='not a checkpoint'):
        load_checkpoint_file(save(dict(extra=Command(proof)), tmp_path / 'evil.pth'))
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


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_forbidden_function_is_named(tmp_path, protocol):
    content = pickle.dumps({'state_dict': {}, 'command': Command(tmp_path / 'executed')}, protocol=protocol)
    (tmp_path / 'evil.pth').write_bytes(content)
    with pytest.raises(CodeInCheckpointError, match=rf'carries code \({os.mkdir.__module__}\.mkdir\)'):
        load_checkpoint_file(tmp_path / 'evil.pth')


def test_whole_models_and_torchscript_are_told_apart(tmp_path):
    with pytest.raises(CodeInCheckpointError, match=r'code \(torch\.nn\.modules\.linear\.Linear\)'):
        load_checkpoint_file(save({'model': torch.nn.Linear(1, 1)}, tmp_path / 'model.pth'))
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match='TorchScript archive'):
        load_checkpoint_file(tmp_path / 'script.pth')


def test_a_file_object_is_scanned_from_where_it_was(tmp_path):
    buffer = io.BytesIO(b'before')
    buffer.seek(0, io.SEEK_END)
    torch.save({'model': Command(tmp_path / 'executed')}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(len(b'before'))
    use_safe_loading()
    with pytest.raises(CodeInCheckpointError, match='in a BytesIO refused: it carries code'):
        torch.load(buffer)


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


def test_a_file_with_any_bit_flipped_is_refused_or_the_same(tmp_path):
    content = dict(state_dict={'a': torch.randn(40), 'b': torch.arange(9)}, meta=dict(x=1))
    whole = save(content, tmp_path / 'whole.pth').read_bytes()
    path = tmp_path / 'flipped.pth'
    refused = 0
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = load_checkpoint_file(path)
        except DamagedCheckpointError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # damage in the padding of the format
            assert read['meta'] == content['meta']
            for name, value in content['state_dict'].items():
                assert torch.equal(read['state_dict'][name], value)
    assert refused > 50


def test_zeros_in_a_tensor_are_refused_by_its_name(tmp_path):
    path = save({'state_dict': {'w': torch.randn(5000)}}, tmp_path / 'epoch_3.pth')
    content = bytearray(path.read_bytes())
    content[8192:12288] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r'epoch_3\.pth.*damaged.*checksum of \S*data/0'):
        load_checkpoint_file(path)


def test_files_without_checksums_are_read(tmp_path):
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({'w': torch.arange(3.0)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(options)
    assert torch.equal(load_checkpoint_file(path)['w'], torch.arange(3.0))


def test_loading_leaves_the_allowed_types_of_the_process_alone(tmp_path):
    path = save({'state_dict': {'w': torch.ones(2)}}, tmp_path / 'a.pth')
    evil = save({'meta': Reach(None)}, tmp_path / 'evil.pth')
    with torch.serialization.safe_globals([getattr, Command]):  # MMEngine allows getattr
        before = set(torch.serialization.get_safe_globals())
        load_checkpoint_file(path)
        with pytest.raises(CheckpointError, match='carries code'):
            load_checkpoint_file(evil)
        assert set(torch.serialization.get_safe_globals()) == before
