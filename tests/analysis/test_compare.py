"""Comparison of trainings: metrics read from logs, the table and the figure."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmrecur.analysis.compare import Curve, Summary, print_summaries, read_curve
from mmrecur.analysis.plots import plot_curves, plot_sizes
from mmrecur.engine.figures import COLOURS, picture_path, save_figure


def write_log(work_dir: Path, start: str, records: list[dict]) -> None:
    path = work_dir / start / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def test_reads_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    training = dict(lr=0.1, loss=2.0, step=100)
    write_log(tmp_path, '20260101_000000', [training, {'accuracy/top1': 30.0, 'step': 1, 'time': 0.1}])
    # the run was killed after the validation of epoch 2 and before its checkpoint; it resumed from epoch 1
    write_log(tmp_path, '20260101_010000', [{'accuracy/top1': 39.0, 'step': 2}])
    again = [{'accuracy/top1': 40.0, 'step': 2}, {'accuracy/top1': 50.0, 'step': 3}]
    write_log(tmp_path, '20260101_020000', again)
    assert read_curve(tmp_path, 'accuracy/top1') == Curve((1, 2, 3), (30.0, 40.0, 50.0))


def test_a_metric_that_was_not_logged_is_named(tmp_path: Path) -> None:
    write_log(tmp_path, '20260101_000000', [{'accuracy/top1': 30.0, 'step': 1, 'data_time': 0.1}])
    with pytest.raises(ValueError, match="metric='accuracy/top5' .* allowed: accuracy/top1$"):
        read_curve(tmp_path, 'accuracy/top5')
    with pytest.raises(ValueError, match='allowed: none was logged'):
        read_curve(tmp_path / 'nowhere', 'accuracy/top1')


def test_table_compares_with_the_first(capsys: pytest.CaptureFixture) -> None:
    curves = {'plain': [(1.0, 3.0), (1.0, 5.0)], 'rla': [(2.0, 7.0), (9.0, 6.0)]}
    summaries = [Summary.of(n, [Curve((1, 2), values) for values in c]) for n, c in curves.items()]
    assert summaries[1].best == (7.0, 9.0)
    assert summaries[1].spread == pytest.approx(0.5**0.5)
    print_summaries(summaries, 'accuracy/top1', {'plain': 1000, 'rla': 1234})
    plain, rla = capsys.readouterr().out.splitlines()[4:6]
    assert plain.split() == ['plain', '1,000', '3.00', '5.00', '4.00', '1.41']
    assert rla.split() == ['rla', '1,234', '7.00', '6.00', '6.50', '0.71', '+2.50']


def test_picture_has_a_line_for_each_config(tmp_path: Path) -> None:
    runs = {'plain': [Curve((1, 2), (3.0, 4.0))]}
    runs['rla'] = [Curve((1, 2), (2.0, 5.0)), Curve((1, 2), (3.0, 6.0))]
    path = tmp_path / 'new' / 'curves.png'
    assert save_figure(plot_curves(runs, 'accuracy/top1', marks=[1.5]), path) == path
    picture = cv2.imread(str(path)).astype(int)
    for colour in COLOURS[:2]:
        blue, green, red = (int(colour[i : i + 2], 16) for i in (5, 3, 1))
        assert (np.abs(picture - (blue, green, red)).sum(-1) < 12).sum() > 100
    (axes,) = plot_curves(runs, 'accuracy/top1', marks=[1.5]).axes
    means = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert means['plain'] == [3.0, 4.0] and means['rla (2 seeds)'] == [2.5, 5.5]
    assert list(axes.get_lines()[-1].get_xdata()) == [1.5, 1.5]


def test_picture_of_the_sizes_has_a_line_for_each_kind() -> None:
    large, small = (200, Summary('large', (6.0, 8.0), (8.0, 8.0))), (100, Summary('small', (5.0,), (5.0,)))
    plain = (150, Summary('plain', (4.0,), (4.0,)))
    (axes,) = plot_sizes({'RecNet': [large, small], 'ResNet': [plain]}, 'accuracy/top1').axes
    lines = {bars.get_label(): bars for bars in axes.containers}
    assert [*lines] == ['RecNet', 'ResNet']
    assert lines['RecNet'][0].get_xydata().tolist() == [[100, 5], [200, 7]]
    (segments,) = lines['RecNet'][2]
    assert [sorted(segment[:, 1]) for segment in segments.get_segments()] == [[5, 5], [6, 8]]
    assert {text.get_text() for text in axes.texts} == {'small', 'large', 'plain'}


def test_pictures_have_a_known_format() -> None:
    assert picture_path('a/b.svg') == 'a/b.svg'
    with pytest.raises(ArgumentTypeError, match="'a.txt' given; .* ends in .png, .pdf, .svg"):
        picture_path('a.txt')
