"""tools/analysis_tools/plot_lag_weights.py: numbers and picture of a model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrecur.apis.runner import ToolError
from mmrecur.models.backbones import DenseNetBC
from tests.tool_module import load_tool

MODEL = "mmrecur.DenseNetBC(depth=40, growth_rate=4, sharing='lag')"


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/plot_lag_weights.py')


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = DenseNetBC(depth=40, growth_rate=4, sharing='lag')
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
        # the three colours of the three blocks are there
        colours = {colour for _, colour in picture.convert('RGB').getcolors(1 << 20)}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours


def test_prints_a_table(tool, checkpoint: str, capsys) -> None:
    tool.main([MODEL, checkpoint, '--by', 'ordinal'])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ['ordinal', 'denseblock1', 'denseblock2', 'denseblock3'] in rows
    # the last of the layers that are read is read by one layer, at lag 1
    assert ['5', *(f'{16 * np.exp(-0.2 * i):.2f}' for i in (1, 2, 3))] in rows
    assert rows[-1][0] == 'r_squared'


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
