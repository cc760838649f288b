"""The code in the README runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

README = (Path(__file__).parents[1] / 'README.md').read_text()
CONFIG, SCRIPT = re.findall(r'```python\n(.*?)```', README, flags=re.S)


def test_config_builds_a_detector(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(path).model)
    assert type(model.backbone).__name__ == 'RLAResNet'
    # what mmdet's Faster R-CNN R-50 has, and the recurrent parts
    assert sum(p.numel() for p in model.parameters()) == 41_753_056 + 281_536


def test_script_runs() -> None:
    scope: dict = {}
    exec(SCRIPT, scope)
    assert [feature.shape[-1] for feature in scope['features']] == [56, 28, 14, 7]
    assert scope['model'].deployed
