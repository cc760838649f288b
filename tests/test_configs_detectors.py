"""The detectors' configs of all families against MMDetection's and the papers' recipes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from tests.helpers.configs import CONFIGS, load, optimizer_of

DETECTORS = [name for name in CONFIGS if name.endswith('_fpn_1x_coco.py')]
#: MMDetection's counterpart of each kind.
LIBRARY = {
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask-rcnn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
library_config = cache(get_config)
#: Learning rate and batch that a paper states for all detectors: RLA's, the shared bases' Section 4.3.
STATED = {'rla': (0.01, 8), 'resnet_shared': (0.01, 8)}


def test_all_kinds_of_all_families_are_compared() -> None:
    kinds = {(Path(name).parts[1], Path(name).stem.split('_')[0]) for name in DETECTORS}
    families = {'rla', 'resnet_shared', 'dr_resnet', 'swrn', 'recnet'}
    assert kinds == {(family, kind) for family in families for kind in LIBRARY}


def schedule_of(cfg: Config) -> list[dict]:
    return [{key: value for key, value in s.items() if key != '_scope_'} for s in cfg.param_scheduler]


@pytest.mark.parametrize(
    'name',
    # RetinaNet has another rate than the others
    [name if 'retinanet' in name else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS],
)
def test_the_schedule_is_the_librarys_unless_a_paper_states_another_rate(name: str) -> None:
    cfg, library = load(name), library_config(LIBRARY[Path(name).stem.split('_')[0]])
    ours, theirs = optimizer_of(cfg), optimizer_of(library)
    rate, batch = ours.pop('lr'), cfg.auto_scale_lr.base_batch_size
    library_rate = theirs.pop('lr') * batch / library.auto_scale_lr.base_batch_size
    family = Path(name).parts[1]
    if family in STATED:
        assert (rate, batch) == STATED[family]
    else:
        assert rate == pytest.approx(library_rate)
    assert ours == theirs
    assert cfg.train_dataloader.batch_size == library.train_dataloader.batch_size
    assert schedule_of(cfg) == schedule_of(library)
    assert cfg.train_cfg.max_epochs == library.train_cfg.max_epochs
