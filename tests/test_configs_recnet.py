"""Configs of RecNet: the paper's recipe, and parameters as the index and the README say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .test_configs import build_schedulers, load, optimizer_of

ROOT = Path(__file__).parents[1]
ENTRIES = yaml.safe_load((ROOT / 'configs' / 'recnet' / 'metafile.yml').read_text())['Models']
CIFAR = [entry['Config'] for entry in ENTRIES if '_cifar' in entry['Name']]


def parameters_of(cfg: Config) -> int:
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(dict(cfg.model, data_preprocessor=None))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_index_and_readme_have_the_counts_of_the_configs(entry: dict) -> None:
    count = parameters_of(load(entry['Config']))
    assert entry['Metadata']['Parameters'] == count
    readme = (ROOT / 'configs' / 'recnet' / 'README.md').read_text()
    row = next(line for line in readme.splitlines() if f'/{entry["Name"]}.py' in line)
    assert f'{count:,}' in row


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
