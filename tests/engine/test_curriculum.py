"""A curriculum in a real training."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

ROOT = Path(__file__).parents[2]


def runner(tmp_path: Path, **options) -> Runner:
    cfg = Config.fromfile(ROOT / 'configs/swrn/shortest-path_cnn.py')
    cfg.model.update(num_layers=2, channels=4)
    cfg.train_dataloader.dataset.update(num_examples=4)
    cfg.custom_hooks[0].epochs_per_phase = 1
    cfg.merge_from_dict({'train_cfg.max_epochs': 2, 'val_dataloader': None, 'val_cfg': None, **options})
    cfg.update(work_dir=str(tmp_path), val_evaluator=None, experiment_name=tmp_path.name)
    return Runner.from_cfg(cfg)


def test_workers_find_the_examples_of_a_phase_drawn(tmp_path: Path) -> None:
    run = runner(tmp_path, **{'train_dataloader.num_workers': 1})
    run.train()
    dataset = run.train_dataloader.dataset
    assert dataset.phase == 1 and dataset._examples is not None


def test_data_without_phases_are_named(tmp_path: Path) -> None:
    examples = dict(type='mmrecur.ShortestPaths', num_examples=4)
    wrapped = dict(_delete_=True, type='ConcatDataset', datasets=[examples])
    run = runner(tmp_path, **{'train_dataloader.dataset': wrapped})
    with pytest.raises(TypeError, match='dataset of type ConcatDataset with CurriculumHook, allowed'):
        run.train()
