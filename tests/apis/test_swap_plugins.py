"""Swaps keep MMCV's plugin layers, with their weights, where the new backbone has a place for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn.bricks import ContextBlock, GeneralizedAttention, NonLocal2d
from mmengine.config import Config
from torch import nn

from mmrecur.apis.runner import load_config
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.trial import try_swap
from mmrecur.errors import ToolError
from tests.helpers import randomise_norms

CONTEXT = dict(type='ContextBlock', ratio=1 / 16)
ATTENTION = dict(
    type='GeneralizedAttention', spatial_range=-1, num_heads=8, attention_type='1111', kv_stride=2
)
PLACE = dict(stages=(False, False, True, True), position='after_conv3')


def narrow(name: str, **backbone: Any) -> Config:
    """Return a config of mmdet with an eighth of the channels."""
    base = load_config(f'mmdet::{name}.py')
    base.model.backbone.update(base_channels=8, stem_channels=8, **backbone)
    base.model.neck.in_channels = [32, 64, 128, 256]
    return base


def faster_rcnn(*plugins: dict) -> Config:
    return narrow('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', plugins=list(plugins))


def gcnet() -> Config:
    return narrow('gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco')


def trained(cfg: dict, scope: str = 'mmdet') -> nn.Module:
    """Build a module with random norms, and with plugins that change their input."""
    torch.manual_seed(0)
    model = build_model(cfg, scope)
    randomise_norms(model)
    for module in model.modules():
        if isinstance(module, ContextBlock | GeneralizedAttention | NonLocal2d):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
    return model


def test_a_gcnet_keeps_its_plugins() -> None:
    swap = plan_swap(gcnet(), 'rla-resnet')
    (plugin,) = swap.config.model.backbone.plugins
    assert plugin == dict(cfg=CONTEXT, stages=(False, True, True, True), position='after_conv3')
    # torchvision's weights have no plugins, which change nothing at first
    assert swap.start.checkpoint == 'torchvision://resnet50' and swap.fit.is_exact
    assert not any('dropped' in note for note in swap.notes)


@pytest.mark.parametrize('name', ['resnet50-shared', 'rla-eca-resnet'])
def test_plugins_without_a_place_are_named(name: str) -> None:
    swap = plan_swap(gcnet(), name)
    assert 'plugins' not in swap.config.model.backbone
    assert f'dropped, the new backbone has no counterpart: plugins={CONTEXT}' in swap.notes


def test_only_plugins_without_a_place_are_dropped() -> None:
    """Empirical attention stands behind the second convolution."""
    base = narrow('empirical_attention/faster-rcnn_r50-attn0010_fpn_1x_coco')
    (attention,) = base.model.backbone.plugins
    base.model.backbone.plugins.append(dict(PLACE, cfg=CONTEXT))
    swap = plan_swap(base, 'rla-resnet')
    assert [dict(plugin) for plugin in swap.config.model.backbone.plugins] == [dict(PLACE, cfg=CONTEXT)]
    assert f'dropped, the new backbone has no counterpart: plugins={attention.cfg}' in swap.notes


def test_two_plugins_in_one_place_are_dropped() -> None:
    first, second = (dict(PLACE, cfg=dict(CONTEXT, postfix=postfix)) for postfix in ('1', '2'))
    swap = plan_swap(faster_rcnn(first, second), 'rla-resnet')
    assert 'plugins' not in swap.config.model.backbone and "'postfix': '2'" in swap.notes[-1]


@pytest.mark.parametrize('cfg', [CONTEXT, dict(CONTEXT, postfix='_a'), ATTENTION, dict(type='NonLocal2d')])
def test_trained_plugins_are_grafted_exactly(cfg: dict) -> None:
    base = faster_rcnn(dict(PLACE, cfg=cfg))
    model = trained(dict(base.model, data_preprocessor=base.model.data_preprocessor))
    swap = plan_swap(base, 'rla-resnet', load_from='grafted.pth')
    trial = try_swap(swap, (64, 96), {'state_dict': model.state_dict()})
    assert trial.grafted.difference < 1e-5
    kept = {key for key in trial.grafted.state if '.attention.' in key}
    assert kept and kept <= trial.grafted.report.copied.keys()


def test_a_file_with_the_weights_of_plugins_is_exact(tmp_path: Path) -> None:
    base, path = gcnet(), tmp_path / 'gcnet.pth'
    backbone = trained(dict(base.model.backbone, init_cfg=None))
    torch.save(backbone.state_dict(), path)
    swap = plan_swap(base, 'rla-resnet', str(path))
    assert swap.fit.is_checked and swap.fit.is_exact
    with pytest.raises(ToolError, match='missing in the source: layer1.0.attention.conv.weight'):
        plan_swap(base, 'rla-eca-resnet', str(path))


def test_plugins_of_this_package_are_kept() -> None:
    plugin = dict(cfg=dict(type='NonLocal2d'), position='before_last_block')
    base = faster_rcnn()
    own = dict(type='mmrecur.RLAResNet', depth=50, base_channels=8, rla_channels=0, plugins=[plugin])
    base.model.backbone = own
    swap = plan_swap(base, 'rla-resnet', 'none')
    assert [dict(kept) for kept in swap.config.model.backbone.plugins] == [plugin]
