"""The config files, and what builds their parts."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import nn

from tests.config_keys import dicts

ROOT = Path(__file__).parents[2]

CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts
)


@cache
def loaded(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def load(name: str) -> Config:
    return copy.deepcopy(loaded(name))


def optimizer_of(cfg: Config) -> dict:
    return {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != '_scope_'}


def without_checkpoints(model: dict) -> dict:
    """The model's config without the checkpoints it would download."""
    for _, value in dicts(model):
        if value.get('init_cfg', {}).get('type') in ('Pretrained', 'mmrecur.Graft'):
            value['init_cfg'] = None
    return model


def build_model(cfg: Config) -> nn.Module:
    model = without_checkpoints(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    torch.manual_seed(0)
    model = MODELS.build(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # after one step the running statistics are that batch's, not close to 0 and 1, with
            # which the activations of 152 random layers overflow
            module.momentum = 1.0
    return model


def build_schedulers(cfg: Config, optim_wrapper: OptimWrapper) -> list:
    found = cfg.get('param_scheduler', [])
    schedulers = []
    for item in [found] if isinstance(found, dict) else found:
        item = dict(item, optimizer=optim_wrapper)
        if item.pop('convert_to_iter_based', False):
            item.pop('_scope_', None)
            kind = PARAM_SCHEDULERS.get(item.pop('type'))
            schedulers.append(kind.build_iter_from_epoch(**item, epoch_length=10))
        else:
            schedulers.append(PARAM_SCHEDULERS.build(item))
    return schedulers
