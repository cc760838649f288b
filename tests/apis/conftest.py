"""Fixtures for swaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.swaps import FPN, user_config


@pytest.fixture(scope='session')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN on a ResNet-50 of an eighth of the width."""
    options = {'model.backbone.base_channels': 8, 'model.neck.in_channels': FPN[1]}
    return user_config(
        tmp_path_factory.mktemp('small'), 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', options
    )
