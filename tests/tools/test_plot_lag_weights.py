"""tools/analysis_tools/plot_lag_weights.py: table and figure of a model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrecur.errors import ToolError
from mmrecur.models.backbones import DenseNetBC, RLAPreActResNet
from tests.tool_module import load_tool

MODEL = "mmrecur.DenseNetBC(depth=40, growth_rate=4, share='lag')"


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/plot_lag_weights.py')


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = DenseNetBC(depth=40, growth_rate=4, share='lag')
    for i in (1, 2, 3):
        conv = getattr(model, f'denseblock{i}').shared_conv1
        lags = torch.arange(5, 0, -1.0).repeat_interleave(4).view(1, -1, 1, 1)
        conv.weight.data = torch.exp(-i * 0.2 * lags).expand_as(conv.weight).contiguous()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth')


def test_prints_and_draws_the_fit(tool, checkpoint: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / 'figures' / 'lag.png'
    tool.main([MODEL, checkpoint, '--out', str(out), '--json'])
    result = json.loads(capsys.readouterr().out)
    assert [block['rate'] for block in result] == pytest.approx([0.2, 0.4, 0.6], abs=1e-5)
    assert [block['r_squared'] for block in result] == pytest.approx([1, 1, 1])
    assert result[0]['norms'] == pytest.approx(16 * np.exp(-0.2 * np.arange(1, 6)))
    with Image.open(out) as picture:
        # the figure contains the colours of the three blocks
        colours = {colour for _, colour in picture.convert('RGB').getcolors(1 << 20)}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours


def test_prints_a_table(tool, checkpoint: str, capsys) -> None:
    tool.main([MODEL, checkpoint, '--by', 'ordinal'])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ['ordinal', 'denseblock1', 'denseblock2', 'denseblock3'] in rows
    # the last layer that is read has a single reader, at lag 1
    assert ['5', *(f'{16 * np.exp(-0.2 * i):.2f}' for i in (1, 2, 3))] in rows
    assert rows[-1][0] == 'r_squared'


@pytest.fixture
def recurrent(tmp_path: Path) -> tuple[str, str]:
    """Save a network whose states keep a half, three fifths and so on of their values at every update."""
    model = RLAPreActResNet(38, block='bottleneck', base_channels=2, rla_channels=2, with_hidden=True)
    for i in (1, 2, 3):
        rla = getattr(model, f'layer{i}').rla
        rla.conv_out.weight.data.fill_(1)
        kernel = torch.zeros(2, 2, 3, 3)
        kernel[[0, 1], [0, 1], 1, 1] = 0.4 + 0.1 * i
        rla.recurrent_conv.weight.data = kernel
        for norm in rla.norms:
            norm.eps = 0
            norm.weight.data.fill_(2)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    arguments = "38, block='bottleneck', base_channels=2, rla_channels=2, with_hidden=True"
    return f'mmrecur.RLAPreActResNet(depth={arguments})', str(tmp_path / 'weights.pth')


def test_recurrent_paths_by_equation_12(tool, recurrent: tuple[str, str], tmp_path: Path, capsys) -> None:
    out = tmp_path / 'recurrent.png'
    tool.main([*recurrent, '--out', str(out), '--json'])
    result = json.loads(capsys.readouterr().out)
    assert [stage['block'] for stage in result] == ['layer1', 'layer2', 'layer3']
    for stage, kept in zip(result, (0.5, 0.6, 0.7)):
        # both states read each map with a weight of one
        assert stage['norms'] == pytest.approx(2 * kept ** np.arange(1, 5))
        assert stage['rate'] == pytest.approx(-np.log(kept), abs=1e-5)
    with Image.open(out) as picture:
        colours = {colour for _, colour in picture.convert('RGB').getcolors(1 << 20)}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours
    tool.main([*recurrent, '--with-norms', '--json'])
    result = json.loads(capsys.readouterr().out)
    assert result[0]['norms'] == pytest.approx([2.0] * 4, rel=1e-4)  # the norms double


def test_too_few_updates_have_no_fit(tool, tmp_path: Path, capsys) -> None:
    model = RLAPreActResNet(20, block='bottleneck', base_channels=2, rla_channels=2)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    config = "mmrecur.RLAPreActResNet(depth=20, block='bottleneck', base_channels=2, rla_channels=2)"
    arguments = [config, str(tmp_path / 'weights.pth')]
    tool.main([*arguments, '--out', str(tmp_path / 'lag.png')])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert rows[-1] == ['r_squared'] and len(rows[-4]) == 3  # the last stage has one update
    tool.main([*arguments, '--json'])
    assert [stage['rate'] for stage in json.loads(capsys.readouterr().out)] == [None, None, None]


@pytest.mark.parametrize(
    'model, message',
    [
        ('mmrecur.RLAResNet(depth=50, base_channels=8)', 'Missing key'),
        (MODEL.replace('lag', 'ordinal').replace('40', '46'), 'denselayer7'),
    ],
)
def test_what_does_not_fit_is_named(tool, checkpoint: str, model: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        tool.main([model, checkpoint])


def test_wrong_options_are_named(tool, checkpoint: str, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main([MODEL, checkpoint, '--out', 'figure.bmp'])
    assert "'figure.bmp' given; allowed" in capsys.readouterr().err
