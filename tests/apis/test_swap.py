"""swap_backbone on configs of mmdet, mmpretrain and a user."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmrecur.apis import list_backbones, swap_backbone
from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.names import find_backbone, signature
from mmrecur.apis.swap.write import changes, source, without_scopes
from mmrecur.errors import ToolError
from mmrecur.models.backbones import RLAResNet
from mmrecur.registry import MODELS as OURS
from tests.helpers.swaps import FPN, NARROW, small_with, swapped_file


def test_the_base_and_its_options_are_kept(small: Path) -> None:
    base = small_with(
        small,
        model__backbone__with_cp=True,
        model__backbone__norm_cfg=dict(type='SyncBN', requires_grad=True),
        model__backbone__out_indices=(1, 2, 3),
        model__neck__in_channels=FPN[1][1:],
        custom_imports=dict(imports=['mmdet.models'], allow_failed_imports=True),
    )
    before = without_scopes(base.to_dict())
    swap = plan_swap(base, 'rla-resnet')
    assert without_scopes(base.to_dict()) == before
    backbone = swap.config.model.backbone
    assert backbone == dict(
        type='mmrecur.RLAResNet', depth=50, base_channels=8, out_indices=(1, 2, 3), frozen_stages=0,
        norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=True, with_cp=True,
        init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50'),
    )  # fmt: skip
    # a plain network's random weights, grafted, gave the same features
    assert swap.fit.difference < 1e-6
    assert swap.config.custom_imports == dict(imports=['mmdet.models', 'mmrecur'], allow_failed_imports=True)
    rest = {k: v for k, v in swap.config.items() if k not in ('model', 'custom_imports')}
    assert rest == {k: v for k, v in base.items() if k not in ('model', 'custom_imports')}
    assert swap.config.model.neck == base.model.neck
    assert swap.config.model.roi_head == base.model.roi_head
    assert 'only the stem stays frozen' in swap.notes[0]


@pytest.mark.parametrize(
    'name, options',
    [
        (
            "mmrecur.ResNetShared(share=('single', None, 'all', 'all'), "
            'share_first=(False, False, True, True))',
            dict(share=('single', None, 'all', 'all'), share_first=(False, False, True, True)),
        ),
        (
            'mmrecur.DRResNet(depth=53, relaxation_rank=(0, 0, 2, 4))',
            dict(relaxation_rank=(0, 0, 2, 4)),
        ),
    ],
)
def test_options_of_single_stages_are_written(small: Path, tmp_path: Path, name: str, options: dict) -> None:
    backbone = swapped_file(small, tmp_path / 'swapped.py', name).model.backbone
    assert {key: backbone[key] for key in options} == options
    assert backbone.base_channels == 8
    model = build_model(dict(backbone), 'mmdet')
    assert any('relaxation' in key for key in model.state_dict()) == ('relaxation_rank' in options)


@pytest.mark.parametrize(
    'base, options, expected',
    [
        (
            'mmdet::mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco.py',
            {'model.backbone.depth': 50, 'model.backbone.init_cfg.checkpoint': 'x.pth'},
            dict(depth=50, groups=32, base_width=4),
        ),
        ('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', {}, dict(depth=50, style='caffe')),
        ('mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', {}, dict(strides=(1, 2, 2, 1))),
        (
            'mmpretrain::resnet/resnetv1d50_8xb32_in1k.py',
            {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='x.pth', prefix='backbone')},
            dict(deep_stem=True, avg_down=True, with_hidden=True),
        ),
        (
            'mmpretrain::seresnet/seresnet50_8xb32_in1k.py',
            {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='x.pth')},
            dict(attention=dict(type='se', reduction=16, bias=True)),
        ),
    ],
)  # fmt: skip
def test_every_plain_resnet_keeps_its_function(base: str, options: dict, expected: dict) -> None:
    cfg = load_config(base, options)
    swap = plan_swap(cfg, 'rla-resnet')
    backbone = swap.config.model.backbone
    assert {key: backbone[key] for key in expected} == expected
    assert {**cfg.model.backbone.init_cfg, 'type': 'mmrecur.Graft'} == backbone.init_cfg
    assert swap.fit.difference < 1e-6


def test_a_name_fixes_what_it_says(small: Path) -> None:
    backbone = swap_backbone(small_with(small), 'rla-eca-resnet101').model.backbone
    assert (backbone.depth, backbone.attention) == (101, 'eca')
    # the plain network of the new depth
    assert backbone.init_cfg == dict(type='mmrecur.Graft', checkpoint='torchvision://resnet101')
    given = swap_backbone(small_with(small), 'mmrecur.RLAResNet(depth=50, frozen_stages=1, variant="v3")')
    assert given.model.backbone.frozen_stages == 1 and given.model.backbone.variant == 'v3'
    own = swap_backbone(small_with(small), 'rla-resnet', init='open-mmlab://resnet50_v1c').model.backbone
    assert own.init_cfg == dict(type='mmrecur.Graft', checkpoint='open-mmlab://resnet50_v1c')
    assert {'rla-resnet', 'rla-resnext50-32x4d'} < set(list_backbones())
    assert list_backbones('rla-se-resnet1*') == ['rla-se-resnet101', 'rla-se-resnet152']


def test_every_declared_name_builds() -> None:
    with torch.device('meta'):
        for name in list_backbones():
            family, args = find_backbone(name)
            # a swap takes open options from the replaced backbone
            open_depth = signature(family).get('depth') is inspect.Parameter.empty
            assert family(**{**(dict(depth=50) if open_depth else {}), **args}).out_channels


def test_a_mobilenet_keeps_its_width() -> None:
    base = load_config('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py')
    base.model.backbone.widen_factor = 0.5
    backbone = swap_backbone(base, 'mobilenetv2-shared-double').model.backbone
    assert (backbone.width_mult, backbone.share, backbone.attention) == (0.5, 'double', 'eca')


def test_every_option_of_a_resnext_is_known() -> None:
    options = {'model.backbone.depth': 50, 'model.backbone.init_cfg': None, 'model.backbone.with_cp': True}
    base = load_config('mmdet::mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco.py', options)
    backbone = swap_backbone(base, "mmrecur.ResNeXtShared(stem='imagenet')").model.backbone
    assert backbone.with_cp and backbone.type == 'mmrecur.ResNeXtShared'


def test_options_without_a_counterpart_are_named(small: Path) -> None:
    dcn = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    base = small_with(
        small, model__backbone__dcn=dcn, model__backbone__stage_with_dcn=(False, False, False, True)
    )
    swap = plan_swap(base, 'rla-resnet')
    assert swap.notes[1] == f'dropped, the new backbone has no counterpart: dcn={dcn}'
    assert swap.fit.difference < 1e-6  # against the plain network that was pretrained


class Demanding(RLAResNet):
    """A backbone that requires hooks and optimizer rules."""

    architectures: ClassVar[dict] = {'demanding-resnet': {}}
    required_hooks = (dict(type='mmrecur.AverageLossesHook'), dict(type='NumClassCheckHook'))
    required_paramwise_cfg: ClassVar[dict] = dict(
        norm_decay_mult=0.5, custom_keys={'conv_out': dict(decay_mult=0.0), 'backbone': dict(lr_mult=9.0)}
    )


@pytest.fixture
def demanding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OURS.module_dict, 'Demanding', Demanding)


def test_hooks_and_rules_join_those_of_the_base(small: Path, demanding: None, tmp_path: Path) -> None:
    own = dict(custom_keys={'backbone': dict(lr_mult=0.1)}, bypass_duplicate=True)
    user = tmp_path / 'user.py'
    user.write_text(
        f'_base_ = {str(small)!r}\n'
        f'optim_wrapper = dict(paramwise_cfg={own!r})\n'
        "custom_hooks = [dict(type='NumClassCheckHook'), dict(type='EMAHook', momentum=0.1)]\n"
        "custom_imports = dict(imports='mmdet.models')\n"
    )
    out = tmp_path / 'deep' / 'er' / 'swapped.py'
    cfg = swapped_file(user, out, 'demanding-resnet')
    assert [hook.type for hook in cfg.custom_hooks] == [
        'NumClassCheckHook', 'EMAHook', 'mmrecur.AverageLossesHook',
    ]  # fmt: skip
    assert cfg.optim_wrapper.paramwise_cfg == dict(
        bypass_duplicate=True,
        norm_decay_mult=0.5,
        custom_keys={'backbone': dict(lr_mult=0.1), 'conv_out': dict(decay_mult=0.0)},
    )
    assert cfg.custom_imports.imports == ['mmdet.models', 'mmrecur']
    # the text refers to inherited items instead of repeating them
    text = out.read_text()
    assert '*_base_.custom_hooks' in text and 'EMAHook' not in text and 'bypass' not in text
    assert "_base_ = '../../user.py'" in text
    # a second swap adds nothing twice
    again = plan_swap(cfg, 'demanding-resnet').config
    assert again.custom_hooks == cfg.custom_hooks and again.custom_imports == cfg.custom_imports


def test_unknown_optimizer_constructors_are_refused(small: Path, demanding: None) -> None:
    base = small_with(small, optim_wrapper__constructor='LearningRateDecayOptimizerConstructor')
    with pytest.raises(ToolError, match="constructor='LearningRateDecay.*norm_decay_mult.*allowed: Default"):
        swap_backbone(base, 'demanding-resnet')


def test_a_detector_within_another_model() -> None:
    base = load_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    swap = plan_swap(base, NARROW, init='none')
    assert swap.target.name == 'model.detector'
    assert swap.config.model.detector.neck.in_channels == FPN[1]
    loaded = plan_swap(base, 'rla-resnet', load_from='grafted.pth').config
    # load_from would be loaded into the whole model, the teacher included
    assert loaded.model.detector.init_cfg == dict(type='Pretrained', checkpoint='grafted.pth')
    assert 'init_cfg' not in loaded.model.detector.backbone and loaded.get('load_from') is None


ARCFACE = 'mmpretrain::arcface/resnet50-arcface_8xb32_inshop.py'

C4 = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'

CORNERNET = 'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py'

MOT = 'mmdet::deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py'


@pytest.mark.parametrize(
    'base, options, name, kwargs, message',
    [
        (None, {}, 'rla-resnet49', {}, "'rla-resnet49'; allowed: .*rla-resnet50"),
        (None, {}, 'mmrecur.RLAResNet(depth=49)', {}, 'depth=49, allowed: 50, 101, 152'),
        (None, {}, 'mmrecur.RLAResNet(depth=50, deep=1)', {}, 'RLAResNet has no deep; allowed: depth,'),
        (None, {}, 'mmdet.ResNet(depth=50)', {}, 'not from this package; allowed: .*mmrecur.RLAResNet'),
        (None, {'model.backbone': None}, 'rla-resnet', {}, 'FasterRCNN, has no part with a backbone'),
        (None, {'model': None}, 'rla-resnet', {}, 'the config has no model'),
        (None, {'model.backbone.depth': 18}, 'rla-resnet', {}, 'depth=18, allowed: 50'),
        (None, {'model.backbone.depth': 20}, 'rla-resnet', {}, "base's backbone.*20"),
        (None, {}, 'rla-resnet', dict(at='model.neck'), "at='model.neck', allowed.*: model"),
        (
            None, {'model.backbone.conv_cfg': dict(type='ConvWS')}, 'rla-resnet', {},
            "conv_cfg={'type': 'ConvWS'}.*init=\"none\"",
        ),
        (None, {'load_from': 'coco.pth'}, 'rla-resnet', {}, "'coco.pth'.*--checkpoint"),
        (
            None, {'model.backbone.init_cfg.checkpoint': 'mine.pth'}, 'rla-resnet101', {},
            "'mine.pth', weights of depth 50; the new backbone has depth 101",
        ),
        (None, {'model.backbone.stem_channels': 16}, 'rla-resnet', {}, 'do not fit: .*wrong shapes'),
        (None, {}, NARROW, dict(init='none'), None),
        (C4, {}, NARROW, dict(init='none'), 'shared_head, a stage of a ResNet-50, reads 1024 channels'),
        (CORNERNET, {}, 'rla-resnet50', {}, r'\[4, 4\]'),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', {}, 'rla-resnet', {}, 'needs depth, which the base'),
        (
            'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', {}, 'rla-resnet50', {},
            'weights of a SwinTransformer, which no backbone.*init="none"',
        ),
        (MOT, {}, 'rla-resnet', {}, 'choose one with at: model.detector, model.reid'),
        (MOT, {}, 'rla-resnet', dict(at='model.detector'), 'weights of a whole model'),
        (ARCFACE, {}, 'rla-resnet', {}, 'no part with a backbone'),
        (
            'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py', {}, 'rla-resnet50', {},
            'no feature maps of shape',
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_swapped_is_said(
    small: Path, base: str | None, options: dict, name: Any, kwargs: dict, message: str | None
) -> None:
    cfg = load_config(base or str(small))
    for key, value in options.items():
        *parents, last = key.split('.')
        part = cfg
        for parent in parents:
            part = part[parent]
        part[last] = value
    if message is None:
        assert swap_backbone(cfg, name, **kwargs).model.backbone.base_channels == 8
        return
    with pytest.raises(ToolError, match=message):
        swap_backbone(cfg, name, **kwargs)


def test_classes_as_types(small: Path) -> None:
    # as in configs of the new style
    from mmdet.models.backbones import ResNet

    cfg = small_with(small)
    cfg.model.backbone.type = ResNet
    assert plan_swap(cfg, 'rla-resnet').fit.difference < 1e-6


def test_wrong_widths_of_the_base_are_found(small: Path) -> None:
    cfg = small_with(small, model__neck__in_channels=[1, 2, 3, 4])
    with pytest.raises(ToolError, match=r'neck.in_channels=\[1, 2, 3, 4\] are not the \[32, 64, 128, 256\]'):
        swap_backbone(cfg, {**NARROW, 'base_channels': 16}, init='none')


def test_changes_of_configs_are_minimal_and_complete() -> None:
    base = dict(a=1, b=dict(type='X', c=[1, 2], d=dict(e=1)), f=[dict(type='Y')], g=None, h=dict(i=1))
    new = dict(
        a=1, b=dict(type='X', c=[1, 2, 3], d=dict(e=1)), f=[dict(type='Z')], g=dict(k=2), h=dict(j=1), m=(1,)
    )
    found = changes(base, new)
    assert source(found) == (
        'dict(\n'
        '    b=dict(c=[*_base_.b.c, 3]),\n'
        "    f=[dict(type='Z')],\n"
        '    g=dict(k=2),\n'
        '    h=dict(_delete_=True, j=1),\n'
        '    m=(1,),\n'
        ')'
    )
