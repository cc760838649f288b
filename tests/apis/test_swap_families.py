"""Swaps in configs of MMDetection's families of detectors, which then take a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmrecur.apis.demo_inputs import demo_inputs
from mmrecur.apis.specs import build_model
from mmrecur.models.backbones import RLAResNet
from tests.helpers.swaps import FPN, NARROW, swapped_file, user_config

slow = pytest.mark.slow


#: Family -> config, module that reads the feature maps, its in_channels at an eighth of the width.
FAMILIES = {
    'two stages': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', *FPN),
    'masks': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', *FPN),
    'cascade': ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', *FPN),
    'cascade with masks and semantics': ('htc/htc_r50_fpn_1x_coco.py', *FPN),
    'panoptic': ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', *FPN),
    'one stage': ('retinanet/retinanet_r50_fpn_1x_coco.py', *FPN),
    'Caffe style, anchor-free': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', *FPN),
    'adaptive assignment': ('atss/atss_r50_fpn_1x_coco.py', *FPN),
    'distributed boxes': ('gfl/gfl_r50_fpn_1x_coco.py', *FPN),
    'task-aligned': ('tood/tood_r50_fpn_1x_coco.py', *FPN),
    'points': ('reppoints/reppoints-moment_r50_fpn_1x_coco.py', *FPN),
    'heatmaps': ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', 'neck', 256),
    'one level': ('yolof/yolof_r50-c5_8xb8-1x_coco.py', 'neck', 256),
    'transformer': ('detr/detr_r50_8xb2-150e_coco.py', 'neck', [256]),
    'deformable transformer': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'neck', [64, 128, 256],
    ),
    'denoising transformer': ('dino/dino-4scale_r50_8xb2-12e_coco.py', 'neck', [64, 128, 256]),
    'sparse proposals': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', *FPN),
    'masks by location': ('solo/solo_r50_fpn_1x_coco.py', *FPN),
    'dynamic masks': ('solov2/solov2_r50_fpn_1x_coco.py', *FPN),
    'prototype masks': ('yolact/yolact_r50_1xb8-55e_coco.py', *FPN),
    'conditional masks': ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', *FPN),
    'mask transformer, no neck': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 'panoptic_head', FPN[1],
    ),
    'VGG': ('ssd/ssd300_coco.py', 'neck', (64, 128)),
    'DarkNet': ('yolo/yolov3_d53_8xb8-320-273e_coco.py', 'neck', [256, 128, 64]),
    'CSPDarkNet': ('yolox/yolox_tiny_8xb8-300e_coco.py', 'neck', [64, 128, 256]),
    'Swin': ('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', *FPN),
}  # fmt: skip


#: Families whose test takes longer than a few seconds.
SLOW = {
    'cascade with masks and semantics', 'panoptic', 'points', 'denoising transformer', 'masks by location',
    'dynamic masks', 'mask transformer, no neck', 'VGG', 'DarkNet', 'Swin',
}  # fmt: skip


#: Image sizes of families that do not accept the usual small ones.
SHAPES = {'denoising transformer': (256, 256), 'VGG': (300, 300)}

CHEAP = {
    'transformer': {'model.num_queries': 10},
    'deformable transformer': {'model.num_queries': 10, 'model.encoder.num_layers': 1},
    'denoising transformer': {'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1},
    'sparse proposals': {'model.rpn_head.num_proposals': 10},
}


def build(cfg: Config) -> nn.Module:
    preprocessor = {'data_preprocessor': cfg.data_preprocessor} if 'data_preprocessor' in cfg else {}
    return build_model({**preprocessor, **cfg.model}, cfg.default_scope)


def check_training_step(cfg: Config, shape: tuple[int, int]) -> None:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg)
        model.init_weights()
        model.data_preprocessor.batch_augments = None
        model.train()
        data = demo_inputs(model, shape)
        loss, logs = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    assert all(torch.isfinite(value).all() for value in logs.values()) and loss > 0
    loss.backward()
    assert isinstance(model.backbone, RLAResNet)
    parameters = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert parameters and [n for n, p in parameters.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in parameters.values())


@pytest.fixture
def epoch() -> None:
    """Publish epoch and iteration, as a runner does."""
    from mmengine.logging import MessageHub

    for name in ('epoch', 'iter'):
        MessageHub.get_current_instance().update_info(name, 0)


@pytest.mark.parametrize('family', [pytest.param(f, marks=slow if f in SLOW else ()) for f in FAMILIES])
def test_families_of_mmdet(family: str, tmp_path: Path, epoch: None) -> None:
    base, reader, channels = FAMILIES[family]
    user = user_config(tmp_path / 'mine', f'mmdet::{base}', CHEAP.get(family))
    cfg = swapped_file(user, tmp_path / 'other' / 'swapped.py', NARROW, init='none')
    assert cfg.custom_imports.imports[-1] == 'mmrecur'
    assert cfg.model.backbone.type == 'mmrecur.RLAResNet'
    assert cfg.model[reader].in_channels == channels
    check_training_step(cfg, SHAPES.get(family, (64, 96) if 'neck' == reader else (128, 128)))
