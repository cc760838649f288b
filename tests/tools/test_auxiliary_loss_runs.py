"""Auxiliary losses in trainings with one and two processes: their log and their effect on weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrecur.checkpoint.io import load_checkpoint_file

WEIGHT = 10.0
#: Added to the configs of conftest.py. Only the order of the images is random.
CONFIG = f"""
backbone = dict(
    _delete_=True, type='mmrecur.ResNetShared', depth=18, base_channels=8, shared_rank=3,
    norm_cfg=dict(type='GN', num_groups=2),
    loss_ortho=dict(type='mmrecur.OrthogonalityLoss', loss_weight={WEIGHT}),
    # far from orthonormal, so that the penalty is large
    init_cfg=[dict(type='Kaiming', layer='Conv2d'), dict(type='Normal', layer='FilterBasis', std=0.3)])
custom_hooks = [dict(type='mmrecur.AuxiliaryLossHook'), dict(type='mmrecur.AverageLossesHook')]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)
val_cfg = val_dataloader = val_evaluator = None
param_scheduler = []
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1))
"""
CLASSIFIER = """
_base_ = './classifier.py'
model = dict(backbone=backbone, head=dict(in_channels=64))
train_dataloader = dict(
    batch_size=4,
    dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
"""
DETECTOR = """
_base_ = './fcos.py'
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 32, 64]))
"""


def penalty(state: dict[str, Tensor]) -> float:
    """Compute the objective of a checkpoint."""
    total, entries = 0.0, 0
    for stage in range(1, 5):
        names = (f'backbone.layer{stage}.basis.conv{i}.weight' for i in (1, 2))
        matrix = torch.cat([state[name].double().flatten(1) for name in names])
        total += (matrix @ matrix.T - torch.eye(len(matrix)).double()).square().sum().item()
        entries += len(matrix) ** 2
    return WEIGHT * total / entries


def logged(work_dir: Path, name: str) -> list[float]:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [line[name] for line in map(json.loads, path.read_text().splitlines()) if name in line]


@pytest.mark.parametrize('task', ['classifier', pytest.param('fcos', marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(workshop: Any, request: Any, task: str) -> None:
    request.getfixturevalue(task)
    path = workshop.root / f'shared_{task}.py'
    text = CONFIG + (CLASSIFIER if task == 'classifier' else DETECTOR)
    lines = text.splitlines()
    base = next(line for line in lines if line.startswith('_base_'))
    path.write_text('\n'.join([base, *(line for line in lines if line != base)]))
    one, two = workshop.root / f'{task}_one', workshop.root / f'{task}_two'
    rest = ['--num-pictures', '0'] if task == 'fcos' else []
    workshop.run('train.py', path, '--work-dir', one, *rest)
    half = ['--cfg-options', 'train_dataloader.batch_size=2']
    workshop.run('dist_train.sh', path, '2', '--work-dir', two, *rest, *half)

    curves = [logged(work_dir, 'loss_ortho') for work_dir in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 6  # two epochs of three steps
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=0)
    states = [load_checkpoint_file(d / 'epoch_2.pth')['state_dict'] for d in (one, two)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-3, atol=1e-5)
    # the first step of the second epoch starts from the weights at the end of the first
    for work_dir, curve in zip((one, two), curves):
        state = load_checkpoint_file(work_dir / 'epoch_1.pth')['state_dict']
        assert 0.1 < curve[3] == pytest.approx(penalty(state), rel=1e-4)
