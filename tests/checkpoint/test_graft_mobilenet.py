"""Plain MobileNetV2s grafted: the same function, every key accounted for."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmrecur.checkpoint import graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones import RLAMobileNetV2
from tests.helpers import randomise_norms
from tests.helpers.transfer import assert_complete, assert_same, features

mmpretrain = pytest.importorskip('mmpretrain')
ALL = tuple(range(8))


def plain(width: float = 0.25, scope: str = 'mmpretrain') -> nn.Module:
    """A library's MobileNetV2 with the norms of a trained one."""
    torch.manual_seed(1)
    model = MODELS.build(dict(type=f'{scope}.MobileNetV2', widen_factor=width, out_indices=ALL))
    randomise_norms(model)
    model.eval()  # which returns nothing in these libraries
    return model


TIMM = {'conv1.conv': 'conv_stem', 'conv1.bn': 'bn1', 'conv2.conv': 'conv_head', 'conv2.bn': 'bn2'}
TIMM_BLOCK = [('conv_pw', 'bn1'), ('conv_dw', 'bn2'), ('conv_pwl', 'bn3')]
TIMM_FIRST_BLOCK = [None, ('conv_dw', 'bn1'), ('conv_pw', 'bn2')]
BLOCKS = [1, 2, 3, 4, 3, 3, 1]


def in_layout(key: str, layout: str) -> str:
    """mmpretrain's name of a MobileNetV2's parameter in the layout of another library."""
    if layout == 'mmpretrain':
        return key
    match = re.fullmatch(r'layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.(\w+)', key)
    if match is None:
        module, leaf = key.rsplit('.', 1)
        if layout == 'torchvision':
            place = {'conv1': '0', 'conv2': '18'}[module[:5]]
            module = f'features.{place}.{0 if module.endswith(".conv") else 1}'
        return f'{TIMM[module] if layout == "timm" else module}.{leaf}'
    group, block, position, kind, leaf = match.groups()
    group, position = int(group) - 1, int(position)
    layer = position + (1 if group == 0 else 0)  # 0 expands, 1 is depthwise, 2 projects
    if layout == 'mmdet':
        name = ['expand', 'depthwise', 'linear'][layer]
        return f'layer{group + 1}.{block}.{name}_conv.{kind}.{leaf}'
    if layout == 'timm':
        names = (TIMM_FIRST_BLOCK if group == 0 else TIMM_BLOCK)[layer]
        return f'blocks.{group}.{block}.{names[kind == "bn"]}.{leaf}'
    place = f'{position}.{int(kind == "bn")}' if layer < 2 else f'{position + (kind == "bn")}'
    return f'features.{1 + sum(BLOCKS[:group]) + int(block)}.conv.{place}.{leaf}'


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.sampled_from([0.1, 0.25, 0.5]),
    rla_channels=st.integers(0, 6),
    sharing=st.sampled_from(['stage', 'network']),
    attention=st.sampled_from(
        [
            None,
            'se',
            'eca',
            'cbam',
            dict(type='se', bias=True),
            dict(type='cbam', bias=True, spatial_norm=True),
        ]
    ),
    layout=st.sampled_from(['torchvision', 'timm', 'mmpretrain', 'mmdet']),
    prefix=st.sampled_from(['', 'module.', 'backbone.', 'module.backbone.']),
    wrapped=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    stages=st.sampled_from([(1, 2, 4, 6), (4, 7), (0,), (5,)]),
    counters=st.booleans(),
)
def test_exact_and_complete_whatever_the_layout(
    width, rla_channels, sharing, attention, layout, prefix, wrapped, dtype, stages, counters
) -> None:
    source = plain(width).to(dtype)
    state = {
        prefix + in_layout(key, layout): value
        for key, value in source.state_dict().items()
        if counters or not key.endswith('num_batches_tracked')
    }
    model = RLAMobileNetV2(width, rla_channels, sharing, attention, out_indices=stages).to(dtype)
    grafted, report = graft({'state_dict': state} if wrapped else state, model)
    assert_complete(report, {key.removeprefix('module.'): 0 for key in state}, model, splits=True)
    model.load_state_dict(grafted)
    assert_same(features(model), tuple(features(source)[i] for i in stages))


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_tables_of_this_test_are_the_libraries(scope: str) -> None:
    pytest.importorskip(scope)
    expected = [in_layout(key, scope) for key in plain().state_dict()]
    assert list(plain(scope=scope).state_dict()) == expected


@pytest.mark.filterwarnings('ignore:Failed to load image')
def test_torchvision_classifier_grafts() -> None:
    models = pytest.importorskip('torchvision.models')
    source = models.mobilenet_v2(num_classes=5, width_mult=0.5)
    randomise_norms(source)
    state = source.state_dict()
    bare = [key for key in state if not key.startswith('classifier')]
    assert bare == [in_layout(key, 'torchvision') for key in plain(0.5).state_dict()]
    model = nn.Module()
    model.backbone = RLAMobileNetV2(0.5, out_indices=(7,), attention='eca')
    model.head = nn.Module()
    model.head.fc = nn.Linear(1280, 5)
    for classifier in ('classifier.1', 'classifier', 'head.fc'):
        renamed = {key.replace('classifier.1', classifier): value for key, value in state.items()}
        grafted, report = graft(renamed, model)
        assert_complete(report, renamed, model, splits=True)
        model.load_state_dict(grafted)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            logits = model.head.fc(model.eval().backbone(x)[-1].mean((2, 3)))
            assert_same((logits,), (source.eval()(x),))
    # a detector's backbone has neither the last convolution nor the classifier
    backbone = RLAMobileNetV2(0.5)
    _, report = graft(state, backbone)
    assert_complete(report, state, backbone, splits=True)
    assert {key for key in report.unused if not key.startswith('features.18.')} == {
        'classifier.1.weight',
        'classifier.1.bias',
    }


def test_grafted_network_trains_as_the_plain_one_and_learns_to_read() -> None:
    source = plain()
    source.train()
    model = RLAMobileNetV2(0.25, 4, out_indices=ALL)
    model.load_state_dict(graft(source.state_dict(), model)[0])
    x = torch.randn(2, 3, 64, 64)
    outputs = model.train()(x)
    for ours, theirs in zip(outputs, source(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    sum((output * output).mean() for output in outputs).backward()
    for key in ('layer2.1.conv3_hidden.weight', 'layer6.0.conv3_hidden.weight', 'conv2_hidden.weight'):
        assert model.get_parameter(key).grad.abs().sum() > 0


def test_a_whole_ssdlite_detector_computes_the_same() -> None:
    pytest.importorskip('mmdet')
    cfg = get_config('mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py').model
    cfg.backbone.update(widen_factor=0.25)
    cfg.neck.update(in_channels=(24, 1280), out_channels=(24, 1280, 512, 256, 256, 128))
    cfg.bbox_head.update(in_channels=cfg.neck.out_channels)
    ours = dict(cfg.backbone, type='mmrecur.RLAMobileNetV2')
    ours['width_mult'] = ours.pop('widen_factor')
    detectors = []
    with DefaultScope.overwrite_default_scope('mmdet'):
        for backbone in (cfg.backbone, ours):
            detectors.append(MODELS.build({**cfg, 'backbone': backbone}))
            detectors[-1].eval()
    source, model = detectors
    randomise_norms(source)
    state, report = graft(source.state_dict(), model)
    assert_complete(report, source.state_dict(), model, splits=True)
    assert all(key.startswith('backbone.') for key in report.initial)
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = [[m for group in d.bbox_head(d.extract_feat(x)) for m in group] for d in detectors]
    assert_same(maps[1], maps[0])


@pytest.mark.parametrize('sharing', ['stage', 'network'])
def test_weights_of_an_rla_network_are_taken_as_they_are(sharing: str) -> None:
    source = RLAMobileNetV2(0.25, 4, sharing, attention='eca', out_indices=ALL)
    randomise_norms(source)
    state = source.state_dict()
    model = RLAMobileNetV2(0.25, 4, sharing, attention='eca', out_indices=ALL)
    grafted, report = graft(state, model)
    assert not report.transformed and not report.initial
    assert all(torch.equal(grafted[key], value) for key, value in state.items())
    # a detector's backbone lacks parameters that nothing reads; one W_r can serve every stage
    model = RLAMobileNetV2(0.25, 4, attention='eca', out_indices=(1, 5))
    grafted, report = graft(state, model)
    assert_complete(report, state, model, splits=True)
    assert not report.initial
    model.load_state_dict(grafted)
    expected = features(source)
    assert_same(features(model), (expected[1], expected[5]))


def test_misfits_are_named() -> None:
    source = plain().state_dict()
    model = RLAMobileNetV2(0.25, 4)
    lacking = {k: v for k, v in source.items() if k != 'layer2.0.conv.1.conv.weight'}
    with pytest.raises(TransferError, match='missing in the source: layer2.0.conv2.weight'):
        graft(lacking, model)
    with pytest.raises(TransferError, match='unexpected in the source: layer2.0.extra'):
        graft({**source, 'layer2.0.extra': torch.zeros(1)}, model)
    with pytest.raises(TransferError, match=r'conv1.weight has shape \(16, 3, 3, 3\)'):
        graft(source, RLAMobileNetV2(0.5, 4))
    with pytest.raises(TransferError, match='are both conv1.weight of a MobileNetV2'):
        graft({**source, 'conv1.weight': source['conv1.conv.weight']}, model)
    of_each_stage = RLAMobileNetV2(0.25, 4).state_dict()
    with pytest.raises(TransferError, match='unexpected in the source: recurrent_convs.1.weight'):
        graft(of_each_stage, RLAMobileNetV2(0.25, 4, 'network'))
