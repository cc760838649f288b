"""tools/swap_backbone.py --recover restores a swapped detector on images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmrecur.apis.recovery import state
from mmrecur.apis.recovery.images import RecoveryImages
from mmrecur.errors import CheckpointError, ToolError
from mmrecur.models.norms import reestimate_norms
from tests.helpers.swaps import build_from, save_trained
from tests.tool_module import load_tool
from tests.tools.conftest import DETECTION_DATA, FASTER_RCNN, SCHEDULE

PLAIN = FASTER_RCNN.replace(
    "backbone=dict(_delete_=True, type='mmrecur.RLAResNet', depth=50, base_channels=8)",
    'backbone=dict(base_channels=8, stem_channels=8, init_cfg=None)',
)


@pytest.fixture(scope='module')
def tool() -> Any:
    return load_tool('swap_backbone.py')


@pytest.fixture(scope='module')
def plain(workshop: Any) -> tuple[Path, Path]:
    """Return the config of a plain detector on drawn shapes, and a checkpoint whose norms fit the images."""
    config = workshop.config('plain', PLAIN, DETECTION_DATA, SCHEDULE)
    text = config.read_text().replace(", 'kill_hook'", '').replace("[dict(type='KillHook')]", '[]')
    config.write_text(text)
    checkpoint = workshop.root / 'plain.pth'
    model = save_trained(checkpoint, config)
    images = RecoveryImages(Config.fromfile(config), 'train', model, batch_size=4)
    reestimate_norms(model, list(images))
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    return config, checkpoint


def arguments(plain: tuple[Path, Path], out: Path, *options: Any) -> list[str]:
    config, checkpoint = plain
    given = [config, '--backbone', 'resnet50-shared', '--checkpoint', checkpoint, '--out', out]
    recovery = ['--recover', 'train', '--steps', 6, '--batch-size', 2]
    return list(map(str, [*given, *recovery, *options]))


def test_a_detector_is_recovered(tool: Any, plain: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / 'shared.py'
    tool.main(arguments(plain, out, '--steps', 60, '--lr', 0.001, '--val'))
    printed = capsys.readouterr().out
    for text in ('norms re-estimated', 'outputs matched', 'bbox_mAP', 'multiply-adds', 'Step 60 of 60'):
        assert text in printed
    values = json.loads(out.with_suffix('.recovery.json').read_text())
    start, norms, match = values['recovery']['stages']
    assert match['errors']['neck.0'] < norms['errors']['neck.0'] <= start['errors']['neck.0']
    assert set(match['metrics']) == set(values['plain']) and 'coco/bbox_mAP' in values['plain']
    assert values['sizes'][1]['backbone'] < values['sizes'][0]['backbone']
    assert out.with_suffix('.recovery.png').stat().st_size > 10_000
    assert not out.with_suffix('.recovery.pth').exists()

    model, cfg = build_from(out)  # the config says what the base said
    assert cfg.model.backbone.frozen_stages == 1 and cfg.model.backbone.norm_eval is True
    saved = torch.load(cfg.load_from, weights_only=True)['state_dict']
    model.load_state_dict(saved)
    before = torch.load(plain[1], weights_only=True)['state_dict']
    others = [name for name in saved if not name.startswith('backbone.')]
    assert others and all(torch.equal(saved[name], before[name]) for name in others)


def test_a_killed_recovery_resumes(tool: Any, plain: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(state, 'INTERVAL', 0.0)
    whole, parts = tmp_path / 'whole.py', tmp_path / 'parts.py'
    tool.main(arguments(plain, whole))

    class Stopped(Exception):
        pass

    def stop(self: Any, step: int, error: float) -> None:
        if step == 4:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr('mmrecur.apis.recovery.progress.RecoveryProgress.__call__', stop)
        with pytest.raises(Stopped):
            tool.main(arguments(plain, parts))
    assert not parts.exists() and parts.with_suffix('.recovery.pth').exists()
    with pytest.raises(CheckpointError, match='steps'):
        tool.main(arguments(plain, parts, '--steps', 7))
    with pytest.raises(CheckpointError, match='another batch size'):
        tool.main(arguments(plain, parts, '--batch-size', 3))
    with pytest.raises(CheckpointError, match='another choice of images'):
        tool.main(arguments(plain, parts, '--num-images', 3))
    tool.main(arguments(plain, parts))
    first, second = (
        torch.load(path.with_suffix('.pth'), weights_only=True)['state_dict'] for path in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_budget_chooses_what_stages_share(tool: Any, plain: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / 'half.py'
    tool.main(arguments(plain, out, '--keep', 0.5, '--steps', 2))
    assert 'Parameters against damage' in capsys.readouterr().out
    sizes = json.loads(out.with_suffix('.recovery.json').read_text())['sizes']
    assert sizes[1]['backbone'] <= 0.5 * sizes[0]['backbone']
    backbone = Config.fromfile(out).model.backbone
    assert len(backbone.share) == len(backbone.share_first) == 4
    build_from(out)


def test_an_exact_swap_needs_no_recovery(tool: Any, plain: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / 'rla.py'
    tool.main([*arguments(plain, out), '--backbone', 'rla-resnet50'])
    assert 'nothing to recover' in capsys.readouterr().out
    assert not out.with_suffix('.recovery.json').exists()


def test_a_random_backbone_is_trained_too(tool: Any, plain: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / 'random.py'
    backbone = 'mmrecur.ResNetShared(depth=50, share=None, base_channels=6)'  # narrower: another neck
    given = arguments(plain, out, '--init', 'none', '--steps', 60, '--lr', 0.001)
    tool.main([*given, '--backbone', backbone])
    assert 'Weights: random' in capsys.readouterr().out
    start, *_, match = json.loads(out.with_suffix('.recovery.json').read_text())['recovery']['stages']
    assert match['errors']['neck.0'] < start['errors']['neck.0']


@pytest.mark.parametrize(
    'options, message',
    [
        (['--keep', '1.5'], '--keep 1.5, allowed: a number above 0 and at most 1'),
        (['--keep', '0.05'], r'--keep 0.05: ResNetShared has \d+% of the parameters'),
        (['--keep', '0.5', '--backbone', 'rla-resnet50'], '--keep with RLAResNet, allowed'),
        (['--steps', '-1'], 'steps=-1'),
        (['--recover', 'nowhere'], "--recover 'nowhere'"),
        (['--lr', 'nan'], 'lr=nan, allowed'),
        (['--seed', '-1'], 'seed=-1, allowed'),
        (['--batch-size', '0'], 'batch_size=0, allowed'),
        (['--num-images', '1'], 'num_images=1, allowed: an integer of at least 2'),
    ],
)
def test_wrong_options_are_named(tool: Any, plain: Any, tmp_path: Path, options: list, message: str) -> None:
    with pytest.raises((ToolError, ValueError), match=message):
        tool.main([*arguments(plain, tmp_path / 'out.py'), *options])
    assert not list(tmp_path.iterdir())


def test_a_recovery_that_diverges_is_an_error_of_the_user(tool: Any, plain: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r'step \d: .* with lr=1e\+30, allowed: a finite one'):
        tool.main(arguments(plain, tmp_path / 'out.py', '--lr', '1e30'))


def test_a_folder_that_cannot_be_written_to_is_named_first(tool: Any, plain: Any, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ToolError, match="file' is no folder to write to"):
        tool.main(arguments(plain, tmp_path / 'file' / 'out.py'))


@pytest.mark.parametrize('option', [['--keep', '0'], ['--val'], ['--num-images', '0'], ['--lr', '0']])
def test_options_of_the_recovery_need_it(tool: Any, plain: Any, tmp_path: Path, option: list) -> None:
    config, checkpoint = plain
    with pytest.raises(ToolError, match=f'{option[0]} without --recover'):
        tool.main([str(config), '--backbone', 'resnet50-shared', '--out', str(tmp_path / 'a.py'), *option])
    with pytest.raises(ToolError, match='--recover without --checkpoint'):
        tool.main([str(config), '--backbone', 'resnet50-shared', '--out', 'a.py', '--recover', 'train'])
