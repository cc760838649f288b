"""swap_backbone on configs of mmdet, mmpretrain and a user."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmrecur.apis import list_backbones, swap_backbone
from mmrecur.apis.demo_inputs import demo_inputs
from mmrecur.apis.runner import (
    load_config,
)
from mmrecur.apis.specs import build_model
from mmrecur.apis.swap import plan_swap
from mmrecur.apis.swap.features import randomize_norms
from mmrecur.apis.swap.names import find_backbone, signature
from mmrecur.apis.swap.write import changes, inheriting_text, source, without_scopes, write_checked
from mmrecur.errors import ToolError
from mmrecur.models.backbones import RLAResNet
from mmrecur.registry import MODELS as OURS

NARROW = dict(type='mmrecur.RLAResNet', depth=50, base_channels=8, rla_channels=4)
FPN = ('neck', [32, 64, 128, 256])
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


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN on a ResNet-50 of an eighth of the width."""
    options = {'model.backbone.base_channels': 8, 'model.neck.in_channels': FPN[1]}
    return user_config(
        tmp_path_factory.mktemp('small'), 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', options
    )


def small_with(small: Path, **options: Any) -> Config:
    return load_config(str(small), {key.replace('__', '.'): value for key, value in options.items()})


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
