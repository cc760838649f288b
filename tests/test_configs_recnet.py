"""Configs of RecNet: the paper's recipe and the networks of its Table 4."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from mmrecur.models.backbones import RecNet
from tests.helpers.configs import build_schedulers, load, optimizer_of
from tests.helpers.recnet import by_hand, classifier_parameters, width_of

ROOT = Path(__file__).parents[1]
ENTRIES = yaml.safe_load((ROOT / 'configs' / 'recnet' / 'metafile.yml').read_text())['Models']
CIFAR = [entry['Config'] for entry in ENTRIES if '_cifar' in entry['Name']]


@pytest.mark.parametrize('name', CIFAR)
def test_cifar_follows_the_paper(name: str) -> None:
    """Section 3."""
    cfg = load(name)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 64
    expected = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    assert optimizer_of(cfg) == expected
    assert cfg.train_cfg.max_epochs == 200
    data = {part: cfg[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')}
    assert [data[part].split for part in data] == ['train', 'test', 'test']
    assert cfg.model.head.num_classes == int(re.search(r'cifar(\d+)', name)[1])


def test_learning_rate_restarts_at_20_60_and_120() -> None:
    cfg = load('configs/recnet/recnet-60-1280_1xb64_cifar10.py')
    parameters = list(nn.Linear(1, 1).parameters())
    optimizer = torch.optim.SGD(parameters, lr=cfg.optim_wrapper.optimizer.lr)
    (schedule,) = build_schedulers(cfg, optimizer)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    assert [i for i, rate in enumerate(rates) if rate == pytest.approx(0.1)] == [0, 20, 60, 120]
    assert [rates[i] for i in (10, 40, 90, 160)] == pytest.approx([0.05] * 4)


#: Table 4: parameters that it prints (millions).
TABLE_4 = {'120-2880': 8.2, '30-60': 0.2}


def test_networks_of_table_4_are_the_nearest() -> None:
    """Combinations that fit and that do not fit, as in the README."""
    counts = {name: classifier_parameters(arch=name) / 1e6 for name in TABLE_4}
    assert counts == {'120-2880': 7.873300, '30-60': 0.207760}
    for name, printed in TABLE_4.items():
        _, segments, steps, _ = RecNet.arch_settings[name]
        depth, width = (int(number) for number in name.split('-'))
        assert 2 * sum(steps) == depth
        # the first has the width of its name, the second the parameters
        assert (width_of(segments, steps) == width) == (name == '120-2880')
        assert (abs(counts[name] - printed) < 0.05) == (name == '30-60')
    # segments of Table 3's two kinds: equal ones with growing steps, doubling ones with equal steps
    kinds = [((s, s, s), (10, 20, 30)) for s in range(1, 60)]
    kinds += [((s, 2 * s, 4 * s), (20, 20, 20)) for s in range(1, 30)]
    named = [kind for kind in kinds if width_of(*kind) == 2880]
    assert named == [((24, 24, 24), (10, 20, 30)), ((9, 18, 36), (20, 20, 20))]
    assert by_hand(4, *named[1]) < by_hand(4, *named[0]) < 8.15e6
    assert by_hand(4, (3, 3, 3), (5, 5, 5)) == 18_055  # of 30 layers, 60 wide
