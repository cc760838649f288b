"""tools/train.py on real processes: resumption after a kill, refusals, precision, processes."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from mmrecur.apis.runner import load_config, use_amp, use_auto_scale_lr
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.engine import lock_work_dir
from mmrecur.errors import CheckpointError, ToolError
from tests.tool_module import load_tool

train = load_tool('train.py')

STEPS = 5  # iterations of an epoch: 10 images, 2 at a time


def scalars(work_dir):
    """Return the logged values of the runs in a work directory, in order."""
    lines = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return lines


def assert_same_run(first, second):
    """Check that weights, optimizer and averages agree bit for bit."""
    first, second = load_checkpoint_file(first), load_checkpoint_file(second)
    assert first['meta']['iter'] == second['meta']['iter']
    assert set(first['state_dict']) == set(second['state_dict'])
    for name, value in first['state_dict'].items():
        assert torch.equal(value, second['state_dict'][name]), name
    states = first['optimizer']['state'], second['optimizer']['state']
    for index, state in states[0].items():
        assert torch.equal(state['momentum_buffer'], states[1][index]['momentum_buffer'])


def test_ends_by_saying_where_everything_is(trained):
    output, work_dir = trained
    results = output.split('Results:')[1]
    paths = dict(re.findall(r'^  ([a-z ]+?) {2,}(\S+)$', results, re.MULTILINE))
    assert set(paths) == {
        'checkpoint', 'best checkpoint', 'log', 'metrics', 'config', 'predictions'
    }  # fmt: skip
    assert all((work_dir.parent / path).exists() for path in paths.values())
    assert 'coco/bbox_mAP' in output.split('Last validation')[1]
    pictures = sorted(path.name for path in Path(paths['predictions']).iterdir())
    assert pictures == [f'{i:06d}.png' for i in range(5)]
    import cv2

    # Ground truth beside predictions, each enlarged from 64 to 320 pixels.
    assert cv2.imread(str(Path(paths['predictions']) / pictures[0])).shape == (320, 640, 3)
    # The config keeps only the last checkpoint.
    assert [path.name for path in work_dir.glob('epoch_*.pth')] == ['epoch_3.pth']
    assert not list(work_dir.glob('.*partial'))


def test_killed_run_resumes_as_if_nothing_had_happened(workshop, detector, trained):
    kill_at = STEPS + 3
    command = ('train.py', detector, '--work-dir', 'killed', '--num-pictures', '0')
    workshop.run(*command, code=-signal.SIGKILL, KILL_AT_ITERATION=str(kill_at))
    work_dir = workshop.root / 'killed'
    assert [path.name for path in work_dir.glob('epoch_*.pth')] == ['epoch_1.pth']
    lost = [line['step'] for line in scalars(work_dir) if 'loss' in line]
    # The kill was in the middle of an epoch, as the log shows.
    assert lost[0] == 1 and STEPS < lost[-1] < kill_at

    output = workshop.run(*command, '--resume', 'auto')
    assert f'from epoch 1, iteration {STEPS}, ' in output
    _, whole = trained
    assert_same_run(whole / 'epoch_3.pth', work_dir / 'epoch_3.pth')
    losses = [
        [line['loss'] for line in scalars(path) if 'loss' in line][-2 * STEPS :] for path in (whole, work_dir)
    ]
    assert losses[0] == losses[1]
    # The augmentations differ between epochs, so the equality above is not trivial.
    first, second = losses[0][:STEPS], losses[0][STEPS:]
    assert not set(first) & set(second)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_killed_run_by_iterations_resumes_and_passes_over_damage(workshop, iterations):
    workshop.run('train.py', iterations, '--work-dir', 'iterations')
    command = ('train.py', iterations, '--work-dir', 'iterations_killed')
    workshop.run(*command, code=-signal.SIGKILL, KILL_AT_ITERATION='5')
    work_dir = workshop.root / 'iterations_killed'
    assert {path.name for path in work_dir.glob('*.pth')} == {'iter_2.pth', 'iter_4.pth'}

    flip_a_bit(work_dir / 'iter_4.pth')
    output = workshop.run(*command, '--resume', 'iterations_killed/iter_4.pth', code=1)
    assert 'Traceback' not in output
    assert re.search(r"iter_4\.pth' refused: it is .*damaged.*iter_2\.pth' is intact", output)
    assert (work_dir / 'iter_2.pth').exists()

    # The number of workers changes, too.
    fewer = '--cfg-options', 'train_dataloader.num_workers=1'
    output = workshop.run(*command, '--resume', 'auto', *fewer)
    assert re.search(r"iter_4\.pth' refused: it is damaged.*iter_2\.pth' is the newest", output)
    assert re.search(r'from .*iteration 2, ', output)
    assert_same_run(workshop.root / 'iterations' / 'iter_6.pth', work_dir / 'iter_6.pth')
    losses = [
        [line['loss'] for line in scalars(path) if 'loss' in line][-4:]
        for path in (workshop.root / 'iterations', work_dir)
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) == 4


def test_a_second_training_in_a_work_directory_is_refused(workshop, classifier):
    lock_work_dir(workshop.root / 'shared')
    output = workshop.run('train.py', classifier, '--work-dir', 'shared', code=1)
    assert f'process {os.getpid()} on ' in output and 'Traceback' not in output
    assert [path.name for path in (workshop.root / 'shared').iterdir()] == ['.training.lock']


def test_full_disk_ends_with_a_message(workshop, classifier):
    # The checkpoint exceeds this limit on the size of a file.
    tool = Path(train.__file__).resolve()
    limited = workshop.root / 'limited.py'
    limited.write_text(
        'import resource, runpy, sys\n'
        f'sys.path.insert(0, {str(tool.parent)!r})\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n'
        f'runpy.run_path({str(tool)!r}, run_name="__main__")\n'
    )
    output = workshop.run(limited, classifier, '--work-dir', 'full', code=1)
    assert 'Traceback' not in output
    assert re.search(r"error: cannot write '\S*epoch_1\.pth': File too large .*MB are needed", output)
    left = {path.name for path in (workshop.root / 'full').iterdir() if path.is_file()}
    assert not any('.pth' in name for name in left), left


def test_code_carrying_checkpoint_is_refused(workshop, detector, code_carrying):
    write, proof = code_carrying
    path = write('evil.pth')
    output = workshop.run('train.py', detector, '--work-dir', 'refused', '--resume', path, code=1)
    assert str(path) in output and 'carries code' in output and 'mkdir' in output
    assert 'Traceback' not in output and not proof.exists()


@pytest.mark.parametrize('option', ['resume', 'auto', 'load_from'])
def test_truncated_checkpoint_is_refused(trained, detector, tmp_path, monkeypatch, option):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    path = tmp_path / 'epoch_1.pth'
    content = (trained[1] / 'epoch_3.pth').read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (tmp_path / 'last_checkpoint').write_text(str(path))
    args = {
        'resume': ['--resume', str(path)],
        'auto': ['--resume'],
        'load_from': ['--cfg-options', f'load_from={path}'],
    }[option]
    with pytest.raises(CheckpointError, match='truncated') as caught:
        train.main([str(detector), '--work-dir', str(tmp_path), *args])
    assert str(path) in str(caught.value)


def test_weights_alone_cannot_be_resumed(detector, trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'a': torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match='message_hub.*load_from='):
        train.main([str(detector), '--work-dir', str(tmp_path), '--resume', str(path)])


def test_resumed_run_takes_over_the_seed(detector, trained, monkeypatch):
    monkeypatch.syspath_prepend(str(trained[1].parent))
    for seed in (None, 77):
        cfg = load_config(str(detector), dict(randomness=dict(seed=seed)))
        train.set_starting_point(cfg, str(trained[1] / 'epoch_3.pth'))
        assert cfg.randomness.seed == 3
    cfg = load_config(str(detector))
    cfg.pop('randomness')  # as in mmdet's own configs
    train.set_starting_point(cfg, str(trained[1] / 'epoch_3.pth'))
    assert cfg.randomness.seed == 3


def test_two_processes_give_the_losses_of_one(workshop, fcos):
    one = 'train.py', fcos, '--work-dir', 'one', '--num-pictures', '0'
    workshop.run(*one)
    workshop.run(
        'dist_train.sh', fcos, '2', '--work-dir', 'two', '--num-pictures', '0',
        '--cfg-options', 'train_dataloader.batch_size=2',
    )  # fmt: skip
    curves = []
    for name in ('one', 'two'):
        lines = [line for line in scalars(workshop.root / name) if 'loss' in line]
        curves.append([[line[key] for key in ('loss', 'loss_cls', 'loss_bbox')] for line in lines])
    assert len(curves[0]) == 6
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
    # ... because they make the same steps.
    weights = [
        load_checkpoint_file(workshop.root / name / 'epoch_2.pth')['state_dict'] for name in ('one', 'two')
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-5)


def test_amp_on_the_cpu_is_bfloat16(workshop, detector, trained):
    output = workshop.run(
        'train.py', detector, '--work-dir', 'amp', '--amp', '--resume', '--auto-scale-lr',
        '--num-pictures', '0', '--cfg-options', 'train_cfg.max_epochs=1', 'val_cfg=None',
        'val_dataloader=None', 'val_evaluator=None',
    )  # fmt: skip
    assert 'Nothing to resume' in output and 'bfloat16, no loss scaling' in output
    amp, full = (
        [line['loss_rpn_cls'] for line in scalars(path) if 'loss' in line][:STEPS]
        for path in (workshop.root / 'amp', trained[1])
    )
    # The difference is that of the precision, not that of another training.
    assert len(amp) == STEPS and amp != full
    assert amp == pytest.approx(full, rel=0.02)
    weights = load_checkpoint_file(workshop.root / 'amp' / 'epoch_1.pth')['state_dict']
    assert all(v.dtype == torch.float32 for v in weights.values() if v.is_floating_point())


def test_classifier_trains_by_its_scope(workshop, classifier):
    output = workshop.run('train.py', classifier, '--work-dir', 'classifier')
    assert 'accuracy/top1' in output.split('Last validation')[1]
    assert 'predictions' not in output.split('Results:')[1]


def test_unusable_configs_are_named(workshop, detector, tmp_path):
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(\n')
    for name in (str(broken), str(tmp_path / 'absent.py'), 'mmdet::absent/absent.py', 'absent::a'):
        with pytest.raises(ToolError, match=re.escape(name)):
            load_config(name)
    (tmp_path / 'empty.py').write_text('model = dict()\n')
    with pytest.raises(ToolError, match='no train_cfg'):
        train.main([str(tmp_path / 'empty.py'), '--work-dir', str(tmp_path)])


def test_missing_data_end_with_a_message(workshop, detector):
    path = workshop.root / 'nowhere' / 'instances.json'
    options = '--cfg-options', f'train_dataloader.dataset.ann_file={path}'
    output = workshop.run('train.py', detector, '--work-dir', 'missing', *options, code=1)
    assert 'Traceback' not in output and str(path) in output.splitlines()[-2]


def test_names_of_packages_find_configs():
    cfg = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco')
    assert cfg.model.type == 'FasterRCNN'
    deeper = {'model.backbone.depth': 101}
    cfg = load_config('mmrecur::rla/faster-rcnn_rla-r50_fpn_1x_coco.py', deeper)
    assert cfg.model.backbone.depth == 101


def test_options_that_the_config_cannot_meet():
    cfg = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    del cfg.auto_scale_lr['base_batch_size']
    with pytest.raises(ToolError, match='base_batch_size'):
        use_auto_scale_lr(cfg)
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ToolError, match='ApexOptimWrapper.*allowed: OptimWrapper'):
        use_amp(cfg)
