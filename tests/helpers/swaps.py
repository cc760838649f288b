"""Configs to swap the backbone of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.write import inheriting_text, source, write_checked

NARROW = dict(type='mmrecur.RLAResNet', depth=50, base_channels=8, rla_channels=4)

FPN = ('neck', [32, 64, 128, 256])


def user_config(folder: Path, base: str, options: dict[str, Any] | None = None) -> Path:
    """Write a user's config, which inherits from a base and changes options."""
    cfg = Config()
    cfg.merge_from_dict(options or {})
    lines = [f'{key} = {source(value)}' for key, value in cfg.to_dict().items()]
    path = folder / 'user.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([f'_base_ = {base!r}', *lines]))
    return path


def swapped_file(base: Path, out: Path, name: Any, **kwargs: Any) -> Config:
    """Write a swapped config and read it back."""
    swap = plan_swap(str(base), name, **kwargs)
    write_checked(inheriting_text(str(base), swap.base, swap.config, out, 'Swapped.'), out, swap.config)
    return Config.fromfile(out)


def small_with(small: Path, **options: Any) -> Config:
    return load_config(str(small), {key.replace('__', '.'): value for key, value in options.items()})


def build_from(path: Path) -> tuple[nn.Module, Config]:
    """Return the model of a config, in evaluation mode, and the config."""
    cfg = Config.fromfile(path)
    preprocessor = {'data_preprocessor': cfg.data_preprocessor} if 'data_preprocessor' in cfg else {}
    return build_model({**preprocessor, **cfg.model}, cfg.default_scope).eval(), cfg


def save_trained(path: Path, config: Path, **extra: Any) -> nn.Module:
    """Build a model with random weights and norms, and save its checkpoint."""
    model, _ = build_from(config)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save({'state_dict': model.state_dict(), **extra}, path)
    return model
