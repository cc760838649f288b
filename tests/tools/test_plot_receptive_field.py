"""tools/analysis_tools/plot_receptive_field.py: its numbers, table and figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrecur.analysis.effective_receptive_field import SegmentView
from mmrecur.analysis.plots import plot_segment_views
from mmrecur.errors import ToolError
from tests.tool_module import load_tool

MODEL = 'mmrecur.RecNet(expansion=2, segments=(2, 3), steps=(4, 3))'


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/plot_receptive_field.py')


def test_prints_and_draws(tool, tmp_path: Path, capsys) -> None:
    out = tmp_path / 'figures' / 'field.png'
    tool.main([MODEL, '--layer', 'layer1.*', '--out', str(out), '--json'])
    result = json.loads(capsys.readouterr().out)
    assert [layer['layer'] for layer in result] == ['layer1.0.crc', 'layer1.1.crc']
    for layer in result:
        assert np.array_equal(np.array(layer['influence']) > 0, np.tril(np.ones((4, 4), bool)))
        assert len(layer['radius']) == 4 and all(0 < radius < 4 for radius in layer['radius'])
    with Image.open(out) as picture:
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 20


def test_the_axes_show_every_radius() -> None:
    radii = [np.array([1.0, 1.01, 1.02]), np.zeros(3)]
    figure = plot_segment_views([SegmentView('crc', np.eye(3), radius) for radius in radii])
    limits = [axes.get_ylim() for axes in figure.axes if axes.get_xlabel() == 'output segment']
    assert [low for low, _ in limits] == [0, 0]
    assert limits[0][1] > 1.05 * 1.02 and limits[1][1] > 0


def test_prints_a_table(tool, capsys) -> None:
    tool.main([MODEL])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ['segment', 'layer1.0.crc', 'layer1.1.crc', 'layer2.0.crc', 'layer2.1.crc'] in rows
    assert [len(row) for row in rows if row[0] in '0123'] == [5, 5, 5, 3]


def test_an_unknown_layer_is_rejected(tool) -> None:
    with pytest.raises(ToolError, match="no CRC layer is named 'layer9', allowed: layer1.0.crc"):
        tool.main([MODEL, '--layer', 'layer9'])
