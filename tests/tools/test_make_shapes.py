"""make_shapes: the data set is complete or absent, repeatable, and existing files are kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tool_module import load_tool

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'dataset_converters' / 'make_shapes.py'
SMALL = ['--num-train', '6', '--num-val', '4', '--size', '48']


@pytest.fixture(scope='module')
def main():
    module = load_tool('dataset_converters/make_shapes.py')
    return lambda *args: module.main([str(arg) for arg in args])


def start(*args):
    """Start the script from the source tree, like a user."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, args)],
        env=os.environ | {'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(directory):
    files = (path for path in sorted(directory.rglob('*')) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_detection_layout_and_report(main, tmp_path, capsys):
    out = tmp_path / 'new' / 'shapes'
    assert main(out, *SMALL) == 0
    names = {f'train/{i:06d}.png' for i in range(6)} | {f'val/{i:06d}.png' for i in range(4)}
    names |= {f'annotations/instances_{split}.json' for split in ('train', 'val')}
    assert set(contents(out)) == names | {'make_shapes.json'}
    assert os.listdir(out.parent) == ['shapes']
    printed = capsys.readouterr().out
    assert str(out / 'annotations' / 'instances_val.json') in printed
    train = json.loads((out / 'annotations' / 'instances_train.json').read_text())
    numbers = [sum(a['category_id'] == k for a in train['annotations']) for k in range(1, 6)]
    row = next(line.split() for line in printed.splitlines() if line.startswith('  train'))
    assert row == ['train', '6', *map(str, numbers)]


def test_two_processes_write_the_same_bytes_and_val_is_not_train(main, tmp_path):
    assert main(tmp_path / 'a', *SMALL) == 0
    process = start(tmp_path / 'b', *SMALL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    files = contents(tmp_path / 'a')
    assert files == contents(tmp_path / 'b')
    assert len(set(files.values())) == len(files)
    assert main(tmp_path / 'c', *SMALL, '--seed', 1) == 0
    assert not set(files.values()) & set(contents(tmp_path / 'c').values())


def test_second_call_does_nothing(main, tmp_path, capsys):
    out = tmp_path / 'shapes'
    assert main(out, *SMALL) == 0
    before = {path: path.stat().st_mtime_ns for path in [out, *out.rglob('*')]}
    assert main(out, *SMALL) == 0
    assert 'already there' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob('*')]} == before


def test_other_arguments_are_an_error_that_names_them_unless_forced(main, tmp_path, capsys):
    out = tmp_path / 'shapes'
    assert main(out, *SMALL) == 0
    before = contents(out)
    assert main(out, *SMALL, '--seed', 7, '--max-objects', 2) == 1
    error = capsys.readouterr().err
    assert 'seed (there 0, asked 7)' in error and 'max_objects (there 4, asked 2)' in error
    assert 'num_train' not in error and contents(out) == before
    assert main(out, *SMALL, '--seed', 7, '--force') == 0
    assert json.loads((out / 'make_shapes.json').read_text())['arguments']['seed'] == 7
    assert main(out, *SMALL, '--task', 'classification', '--force') == 0
    assert sorted(os.listdir(out)) == ['make_shapes.json', 'train', 'val']
    assert os.listdir(tmp_path) == ['shapes']


def test_force_repairs_and_without_it_damage_is_noticed(main, tmp_path, capsys):
    out = tmp_path / 'shapes'
    assert main(out, *SMALL) == 0
    whole = contents(out)
    (out / 'val' / '000002.png').unlink()
    assert main(out, *SMALL) == 1
    assert 'holds 3 images instead of 4' in capsys.readouterr().err
    assert main(out, *SMALL, '--force') == 0
    assert contents(out) == whole


@pytest.mark.parametrize('force', [[], ['--force']])
def test_what_it_did_not_make_is_left_alone(main, tmp_path, capsys, force):
    photos, file, mixed = tmp_path / 'photos', tmp_path / 'file', tmp_path / 'mixed'
    photos.mkdir()
    (photos / 'make_shapes.json').write_text('{"something": "else"}')
    file.write_text('text')
    assert main(mixed, *SMALL) == 0
    (mixed / 'results').mkdir()
    (mixed / 'results' / 'mine.txt').write_text('mine')
    before = contents(tmp_path)
    for path, reason in [(photos, 'not made'), (file, 'not made'), (mixed, 'results')]:
        capsys.readouterr()
        assert main(path, *SMALL, *force) == 1
        assert reason in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_empty_directory_is_filled(main, tmp_path):
    assert main(tmp_path, *SMALL) == 0
    assert (tmp_path / 'make_shapes.json').is_file()


def test_killed_run_leaves_nothing_that_looks_whole(main, tmp_path, capsys):
    out = tmp_path / 'shapes'
    process = start(out, '--num-train', 100000, '--size', 48)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob('.shapes.partial-*/new/train/000003.png')):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not out.exists()
    assert main(out, *SMALL) == 0
    assert 'left by a killed run' in capsys.readouterr().out
    assert len(list((out / 'train').iterdir())) == 6


@pytest.mark.parametrize('wrong', [['--size', '16'], ['--size', '64', '64', '64'], ['--seed', '-1']])
def test_wrong_arguments_exit_with_the_name_and_what_is_allowed(main, tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        main(tmp_path / 'shapes', *wrong)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f'{wrong[0][2:]} is' in error and 'allowed' in error
    assert not (tmp_path / 'shapes').exists()
