"""Names of the swap equal those of the configs; imports install no warning filters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrecur.apis import list_backbones
from mmrecur.apis.swap.names import find_backbone, signature

CONFIGS = Path(__file__).parents[2] / 'configs'


def full(family: type, args: dict[str, Any]) -> dict[str, Any]:
    """Arguments with defaults, without those that do not change the architecture."""
    other = {'type', 'with_hidden', 'out_indices', 'init_cfg', 'norm_cfg', 'style'}
    every = {**signature(family), **args}
    return {k: v for k, v in every.items() if k not in other and not k.startswith('loss_')}


def test_names_with_a_depth_equal_those_of_the_imagenet_configs() -> None:
    configs: dict[tuple[str, str], list[str]] = {}
    for path in CONFIGS.glob('*/*_in1k.py'):
        backbone = Config.fromfile(path).model.backbone
        if backbone.type.startswith('mmrecur.'):
            family, args = find_backbone(backbone.to_dict())
            key = family.__name__, repr(sorted(full(family, args).items()))
            configs.setdefault(key, []).append(path.stem.partition('_')[0])
    compared = set()
    for name in list_backbones():
        family, args = find_backbone(name)
        same = configs.get((family.__name__, repr(sorted(full(family, args).items()))))
        if 'depth' in args and same:
            assert name in same
            compared.add(name)
    assert {'rla-eca-resnet50', 'resnet50-shared-double', 'dr-resnet53', 'swrn-50-2'} <= compared


def test_importing_the_package_installs_no_warning_filters() -> None:
    code = (
        'import warnings, torch, mmengine.runner, mmdet, mmpretrain, mmcv.ops\n'
        'before = list(warnings.filters)\n'
        'import mmrecur.apis\n'
        'added = [f for f in warnings.filters if f not in before]\n'
        'assert not added, added\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
