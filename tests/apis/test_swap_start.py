"""What a swapped backbone starts from: frozen stages, and files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.features import randomize_norms
from mmrecur.errors import ToolError
from tests.helpers.swaps import NARROW, small_with


def test_random_weights_are_not_frozen(small: Path) -> None:
    base = small_with(small, model__backbone__norm_cfg=dict(type='BN', requires_grad=False))
    swap = plan_swap(base, 'rla-resnet', init='none')
    backbone = swap.config.model.backbone
    assert {'frozen_stages', 'norm_eval', 'init_cfg', 'norm_cfg'}.isdisjoint(backbone)
    assert [edit.place for edit in swap.unfrozen] == [
        'backbone.frozen_stages', 'backbone.norm_eval', 'backbone.norm_cfg',
    ]  # fmt: skip


def test_nothing_is_frozen_that_does_not_compute_what_it_did(small: Path) -> None:
    base = small_with(small, model__backbone__norm_cfg=dict(type='BN', requires_grad=False))
    inexact = plan_swap(base, 'resnet50-shared')
    assert inexact.fit.difference > 1e-3 and not inexact.fit.is_exact
    backbone = inexact.config.model.backbone
    assert {'frozen_stages', 'norm_eval', 'norm_cfg'}.isdisjoint(backbone)
    assert [edit.place for edit in inexact.unfrozen] == [
        'backbone.frozen_stages', 'backbone.norm_eval', 'backbone.norm_cfg',
    ]  # fmt: skip
    assert 'the grafted backbone does not compute the same function' in inexact.notes[0]
    assert 'for frozen_stages, norm_eval, norm_cfg would prevent training' in inexact.notes[0]
    # with a trained checkpoint of the whole model too
    whole = plan_swap(base, 'resnet50-shared', load_from='grafted.pth')
    assert {'frozen_stages', 'norm_eval', 'norm_cfg'}.isdisjoint(whole.config.model.backbone)
    for exact in (plan_swap(base, 'rla-resnet'), plan_swap(base, 'rla-resnet', load_from='grafted.pth')):
        assert exact.fit.is_exact
        assert exact.config.model.backbone.norm_eval and exact.config.model.backbone.frozen_stages == 0
    # options that the user fixes are kept
    own = plan_swap(base, 'mmrecur.ResNetShared(depth=50, frozen_stages=1, norm_eval=True)')
    assert (own.config.model.backbone.frozen_stages, own.config.model.backbone.norm_eval) == (1, True)


def narrow_resnet(**options: Any) -> nn.Module:
    cfg = dict(type='mmdet.ResNet', depth=50, base_channels=8, **options)
    backbone = build_model(cfg, 'mmdet')
    randomize_norms(backbone, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return backbone


def test_a_file_to_start_from_is_read_at_once(small: Path, tmp_path: Path) -> None:
    base, file = small_with(small), str(tmp_path / 'plain.pth')
    torch.save({'state_dict_ema': narrow_resnet().state_dict()}, file)
    exact = plan_swap(base, 'rla-eca-resnet', file)
    assert exact.fit.is_exact and exact.fit.is_checked and exact.config.model.backbone.norm_eval
    assert exact.config.model.backbone.init_cfg == dict(type='mmrecur.Graft', checkpoint=file)
    inexact = plan_swap(base, 'resnet50-shared', file)
    assert (
        inexact.fit.is_checked
        and 0.5 < max(inexact.fit.errors.values()) < 1.5
        and inexact.fit.difference > 1e-3
    )
    assert 'norm_eval' not in inexact.config.model.backbone
    # also if the base has another kind of backbone, or itself starts from such a file
    yolo = load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    assert plan_swap(yolo, NARROW, file).fit.is_exact
    assert not plan_swap(yolo, 'mmrecur.DRResNet(base_channels=8)', file).fit.is_exact
    own = small_with(small, model__backbone__init_cfg=dict(type='Pretrained', checkpoint=file))
    assert plan_swap(own, 'rla-resnet').fit.is_checked


@pytest.mark.parametrize(
    'content, name, message',
    [
        (None, 'rla-resnet', 'plain.pth\' does not exist.*Allowed: init="none"'),
        ('no checkpoint', 'rla-resnet', "plain.pth' refused: it is truncated, damaged or not a checkpoint"),
        ({'net.conv1.weight': torch.ones(1)}, 'rla-resnet', 'that init names, .*plain.pth.* do not fit'),
        ('deep stem', 'rla-resnet', 'do not fit: .*fits a backbone with deep_stem=True'),
        ('resnet', 'rla-resnet101', 'do not fit: .*missing in the source: layer3.6'),
    ],
)
def test_a_file_that_does_not_suit_is_refused_at_once(
    small: Path, tmp_path: Path, content: Any, name: str, message: str
) -> None:
    file = tmp_path / 'plain.pth'
    if content == 'no checkpoint':
        file.write_text(content)
    elif isinstance(content, str):
        torch.save(narrow_resnet(deep_stem=content == 'deep stem', stem_channels=8).state_dict(), file)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ToolError, match=message):
        plan_swap(small_with(small), name, str(file))


def test_what_is_not_read_is_said(small: Path) -> None:
    swap = plan_swap(small_with(small), 'rla-resnet', 'torchvision://resnet50')
    assert swap.fit.is_exact and not swap.fit.is_checked
    assert 'torchvision://resnet50 was not downloaded: whether it fits will show' in swap.notes[0]
    base = small_with(small, model__backbone__init_cfg=dict(type='Pretrained', checkpoint='absent.pth'))
    assert 'absent.pth does not exist yet' in plan_swap(base, 'rla-resnet').notes[0]
