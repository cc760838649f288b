"""A run resumes from the newest of its intact checkpoints."""

import os

import pytest
import torch

from mmrecur.checkpoint.resume import find_checkpoint_to_resume, load_run_checkpoint
from mmrecur.errors import DamagedCheckpointError


@pytest.fixture
def save(tmp_path):
    """Returns a writer of checkpoints, each newer than the one before."""
    moments = iter(range(1, 100))

    def write(name, damaged=False, **kwargs):
        path = tmp_path / name
        torch.save({'state_dict': {'w': torch.randn(100)}, 'optimizer': {}}, path, **kwargs)
        if damaged:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        moment = next(moments)
        os.utime(path, (moment, moment))
        return path

    return write


def test_finds_where_a_run_got_to(tmp_path, save):
    assert find_checkpoint_to_resume(tmp_path) is None
    for name in ('epoch_9.pth', 'epoch_10.pth', 'best_a_epoch_11.pth'):
        save(name)
    # If no existing checkpoint is named, the newest training checkpoint is used.
    assert find_checkpoint_to_resume(tmp_path).name == 'epoch_10.pth'
    pointer = tmp_path / 'last_checkpoint'
    for text in (b'', os.fsencode(tmp_path / 'epoch_8.pth'), b'\xff\x00\xfe'):
        pointer.write_bytes(text)
        assert find_checkpoint_to_resume(tmp_path).name == 'epoch_10.pth'
    # Named by a path of before the directory was moved.
    pointer.write_text('/no/longer/there/epoch_9.pth')
    assert find_checkpoint_to_resume(tmp_path) == tmp_path / 'epoch_9.pth'


@pytest.mark.parametrize('names', ['epoch_{}.pth', 'iter_{}.pth', 'state_{}_of_run.pth'])
def test_passes_over_damaged_checkpoints_and_says_so(tmp_path, save, names):
    for number in (1, 2):
        save(names.format(number))
    save(f'best_{names.format(2)}')
    for number in (3, 10):
        newest = save(names.format(number), damaged=True)
    (tmp_path / 'last_checkpoint').write_text(str(newest))
    said = []
    intact = tmp_path / names.format(2)
    assert find_checkpoint_to_resume(tmp_path, report=said.append) == intact
    assert len(said) == 1 and said[0].count('refused: it is damaged') == 2
    assert str(newest) in said[0] and f'{str(intact)!r} is the newest that is intact' in said[0]
    # the same for one that is asked for
    with pytest.raises(DamagedCheckpointError) as caught:
        load_run_checkpoint(newest)
    assert str(newest) in str(caught.value) and f'{str(intact)!r} is intact' in str(caught.value)


def test_checkpoints_of_an_earlier_run_come_last(tmp_path, save):
    # copied back, or left by a longer run: newer than the damaged one
    damaged, older, newer = save('epoch_3.pth', damaged=True), save('epoch_2.pth'), save('epoch_12.pth')
    os.utime(older, (0, 0))
    with pytest.raises(DamagedCheckpointError, match=r"epoch_2\.pth' is intact"):
        load_run_checkpoint(damaged)
    older.unlink()
    with pytest.raises(DamagedCheckpointError, match=r"epoch_12\.pth' is intact"):
        load_run_checkpoint(damaged)
    newer.unlink()
    with pytest.raises(DamagedCheckpointError) as caught:
        load_run_checkpoint(damaged)
    assert 'is intact' not in str(caught.value)


def test_without_an_intact_one_nothing_starts_anew(tmp_path, save):
    save('epoch_1.pth', damaged=True)
    legacy = save('epoch_2.pth', _use_new_zipfile_serialization=False)
    assert find_checkpoint_to_resume(tmp_path) == legacy
    legacy.write_bytes(legacy.read_bytes()[:-50])
    with pytest.raises(DamagedCheckpointError, match=r'epoch_2\.pth.*epoch_1\.pth.*no intact one'):
        find_checkpoint_to_resume(tmp_path)
