"""Test tools/benchmark.py on DR-ResNet's loops and RecNet: equal functions, complete tables, refusals."""

from __future__ import annotations

import re

import pytest
import torch

from mmrecur.analysis.forced_loops import spread_iterations
from mmrecur.analysis.loop_benchmark import executed_share
from mmrecur.analysis.loop_complexity import measure_loops
from mmrecur.analysis.recnet_benchmark import plain_recnet
from mmrecur.models.backbones import DRResNet, RecNet
from tests.helpers import randomise_norms
from tests.tool_module import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark.py')


@pytest.mark.parametrize('skip', [True, False])
def test_the_work_is_that_of_the_forced_iterations(skip: bool) -> None:
    model = DRResNet(32, skip=skip).eval()
    x = torch.randn(5, 3, 16, 16)
    limits = {name: block.num_iterations for name, block in model.loop_blocks().items()}
    iterations = spread_iterations(limits, 5, 0.5)
    work = measure_loops(model, x[:1])
    expected = 5 * work.fixed
    for name, counts in iterations.items():
        loop = work.loops[name]
        expected += sum(loop.iteration * count + loop.gate * min(count + 1, 4) for count in counts)
    share = executed_share(model, x, iterations)
    assert share == pytest.approx(expected / (5 * work.maximum))
    whole = {name: [limit] * 5 for name, limit in limits.items()}
    assert executed_share(model, x, whole) == pytest.approx(1)


@pytest.mark.parametrize('extra', [[], ['--deploy']])
def test_prints_ratios_of_every_rate_and_batch_size(tool, capsys, extra: list[str]) -> None:
    threads = torch.get_num_threads()
    options = ['--depth', '16', '--rate', '0.5', '0.8', '--batch-size', '1', '3', '--shape', '16', '16']
    try:
        tool.main(['loops', *options, '--rounds', '4', '--threads', '1', '--device', 'cpu', *extra])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert ('inference form' in printed) == bool(extra) and '16x16' in printed and '1 threads' in printed
    rows = [line.strip('│ ').split('│') for line in printed.splitlines() if line.startswith('│')]
    cells = [[float(cell) for cell in row[:4] + row[5:]] for row in rows]
    assert [row[:2] for row in cells] == [[0.5, 1], [0.5, 3], [0.8, 1], [0.8, 3]]
    for _, _, _, time, best, work, quotient, aim, masked, no_slower in cells:
        assert 0 < work < 1 and time > 0 and masked > 0 and best > 0
        assert quotient == pytest.approx(time / work, rel=0.01)
        assert (aim, no_slower) == (1.08, 1.0)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--rounds', '3'], 'argument --rounds: 3 given; allowed: at least 4'),
        (['--rate', '0.5', '1'], 'argument --rate: 1 given; allowed: between 0 and 1'),
        (['--batch-size', '0'], 'argument --batch-size: 0 given; allowed: at least 1'),
    ],
)
def test_wrong_options_are_named(tool, capsys, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        tool.parse_args(['loops', *options])
    assert re.search(message, capsys.readouterr().err)


def test_the_reference_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = RecNet(expansion=2, segments=(2, 3), steps=(3, 2)).eval()
    randomise_norms(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for actual, expected in zip(plain_recnet(model)(x), model(x), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_prints_times_and_memory_of_both_forms(tool, monkeypatch, capsys) -> None:
    monkeypatch.setitem(RecNet.arch_settings, '60-640', (2, (2, 3), (3, 2), 'cifar'))
    options = ['--arch', '60-640', '--batch-size', '2', '--size', '16', '--rounds', '4', '--device', 'cpu']
    tool.main(['recnet', *options])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if 'inference form' in line or 'training step' in line]
    assert [row.count('│') for row in rows] == [9, 9]
    assert '0.85' in rows[0] and '0.50' in rows[0] and '0.95' in rows[1] and '0.80' in rows[1]
