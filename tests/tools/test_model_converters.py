"""The tools that read one checkpoint file and write another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from mmrecur.apis.specs import build_model, read_model
from mmrecur.checkpoint.io import load_checkpoint_file
from mmrecur.errors import ToolError
from tests import golden
from tests.tool_module import load_tool

ROOT = Path(__file__).resolve().parents[2]


def test_authors_file_becomes_ours(workshop: Any, tmp_path: Path) -> None:
    fixture = golden.load('det_rla_resnet50')
    torch.save({'state_dict': fixture.state_dict}, tmp_path / 'theirs.pth')
    spec = "mmrecur.RLAResNet(depth=50, variant='v3')"
    output = workshop.run(
        'model_converters/convert_checkpoint.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth',
        '--source', 'rlanet', '--config', spec, own=True,
    )  # fmt: skip
    assert 'transformed' in output
    model = build_model(*read_model(spec)).eval()
    model.load_state_dict(load_checkpoint_file(tmp_path / 'ours.pth')['state_dict'])
    with torch.no_grad():
        for i, output in enumerate(model(fixture.input)):
            assert golden.relative_error(output, fixture.outputs[f'eval_{i}']) < 1e-4
    report = json.loads((tmp_path / 'ours.report.json').read_text())
    assert set(report) == {'copied', 'transformed', 'initial', 'unused', 'notes', 'errors'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ours.pth', 'ours.report.json', 'theirs.pth']


def test_plain_detector_becomes_ours(workshop: Any, tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    plain = build_model(*read_model('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'))
    torch.save({'state_dict': plain.state_dict(), 'meta': {'epoch': 12}}, tmp_path / 'plain.pth')
    config = ROOT / 'configs/rla/retinanet_rla-r50_fpn_1x_coco.py'
    command = ['model_converters/graft_checkpoint.py', tmp_path / 'plain.pth', tmp_path / 'rla.pth']
    workshop.run(*command, '--config', config, own=True)
    model = build_model(*read_model(str(config)))
    model.load_state_dict(load_checkpoint_file(tmp_path / 'rla.pth')['state_dict'])
    x = torch.randn(1, 3, 96, 128)
    for detector in (plain, model):
        detector.eval()
    with torch.no_grad():
        for ours, theirs in zip(model._forward(x), plain._forward(x)):
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_writes_nothing(workshop: Any, tmp_path: Path) -> None:
    backbone = MODELS.build(dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8))
    torch.save(backbone.state_dict(), tmp_path / 'narrow.pth')
    output = workshop.run(
        'model_converters/graft_checkpoint.py', tmp_path / 'narrow.pth', tmp_path / 'out.pth',
        '--config', 'mmrecur.RLAResNet(depth=50)', code=1,
    )  # fmt: skip
    assert 'narrow.pth' in output and 'conv1.weight has shape (64, 3, 7, 7)' in output
    assert 'Traceback' not in output
    assert [path.name for path in tmp_path.iterdir()] == ['narrow.pth']


def test_weights_are_picked_from_a_file_with_several(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tool = load_tool('model_converters/graft_checkpoint.py')
    plain = MODELS.build(dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8))
    state = plain.state_dict()
    doubled = {key: 2 * value for key, value in state.items()}
    both = {f'student.{key}': value for key, value in state.items()}
    both |= {f'teacher.{key}': value for key, value in doubled.items()}
    torch.save({'state_dict': both}, tmp_path / 'pair.pth')
    torch.save({'state_dict': state, 'state_dict_ema': doubled}, tmp_path / 'timm.pth')
    out, config = tmp_path / 'out.pth', ['--config', 'mmrecur.RLAResNet(depth=50, base_channels=8)']

    def factor(name: str, *options: str) -> float:
        tool.main([str(tmp_path / name), str(out), *config, *options])
        stem = load_checkpoint_file(out)['state_dict']['conv1.weight']
        return (stem / state['conv1.weight']).mean().round(decimals=3).item()

    assert factor('pair.pth', '--prefix', 'student') == 1 and factor('pair.pth', '--prefix', 'teacher.') == 2
    assert factor('timm.pth') == 2 and "taken from 'state_dict_ema'" in capsys.readouterr().out
    assert factor('timm.pth', '--no-ema') == 1
    out.unlink()
    for options, message in (
        (['--prefix', 'pupil'], 'keys start with student., teacher.'),
        (['--no-strict'], 'nothing in the source fits the backbone'),
    ):
        with pytest.raises(ToolError, match=message):
            factor('pair.pth', *options)
    assert not out.exists()
