"""tools/benchmark_recnet.py: what it compares computes the same, and its table is complete."""

from __future__ import annotations

import sys

import torch

from mmrecur.models.backbones import RecNet
from tests.helpers import randomise_norms
from tests.tool_module import load_tool


def load():
    return load_tool('benchmark_recnet.py')


def test_the_reference_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = RecNet(expansion=2, segments=(2, 3), steps=(3, 2)).eval()
    randomise_norms(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for actual, expected in zip(load().plain(model)(x), model(x), strict=True):
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_prints_times_and_memory_of_both_forms(monkeypatch, capsys) -> None:
    tool = load()
    monkeypatch.setitem(RecNet.arch_settings, '60-640', (2, (2, 3), (3, 2), 'cifar'))
    options = ['--arch', '60-640', '--batch-size', '2', '--size', '16', '--rounds', '4', '--device', 'cpu']
    monkeypatch.setattr(sys, 'argv', ['benchmark_recnet.py', *options])
    tool.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if 'inference form' in line or 'training step' in line]
    assert [row.count('│') for row in rows] == [9, 9]
    assert '0.85' in rows[0] and '0.50' in rows[0] and '0.95' in rows[1] and '0.80' in rows[1]
