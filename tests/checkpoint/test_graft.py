"""Plain networks grafted: the same function, every key accounted for."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.apis.swap.names import find_backbone
from mmrecur.checkpoint import graft, register_graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones import Backbone, RLAResNet
from tests.helpers import randomise_norms
from tests.helpers.transfer import assert_complete, assert_same, features, plain_resnet

mmpretrain = pytest.importorskip('mmpretrain')

ALL = (0, 1, 2, 3)

PLAIN = {
    'resnet': (dict(), dict()),
    'resnet101': (dict(depth=101), dict(depth=101)),
    'resnet to eca': (dict(), dict(attention='eca')),
    'resnet to se': (dict(), dict(attention='se')),
    'resnet to se with biases': (dict(), dict(attention=dict(type='se', bias=True))),
    'se-resnet': (dict(kind='SEResNet', se_ratio=4), dict(attention=dict(type='se', reduction=4, bias=True))),
    'caffe': (dict(scope='mmdet', style='caffe'), dict(style='caffe')),
    'wide': (dict(base_channels=16, expansion=2), dict(base_width=128)),
    'resnext': (dict(kind='ResNeXt', groups=2, width_per_group=4), dict(groups=2, base_width=4)),
    'resnet-d': (
        dict(deep_stem=True, avg_down=True),
        dict(deep_stem=True, avg_down=True),
    ),
    'mmdet': (dict(scope='mmdet'), dict()),
    'mmdet resnet-d': (
        dict(scope='mmdet', deep_stem=True, avg_down=True),
        dict(deep_stem=True, avg_down=True),
    ),
    'gn': (
        dict(scope='mmdet', norm_cfg=dict(type='GN', num_groups=2)),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
    ),
    'resnet to cbam': (dict(), dict(attention='cbam')),
    'resnet to cbam with norms': (
        dict(),
        dict(attention=dict(type='cbam', bias=True, spatial_norm=True)),
    ),
    'unshared': (dict(), dict(share=None)),
    'no exchange': (dict(), dict(exchange=False)),
    'lstm': (dict(), dict(cell='lstm')),
    'gru': (dict(), dict(cell='gru')),
    'post-activated': (dict(), dict(post_act=True)),
    'plain': (dict(), dict(rla_channels=0, with_hidden=False)),
    'plain to se': (dict(), dict(rla_channels=0, with_hidden=False, attention='se')),
}


#: Options that know no variant that adds last, and the plain network.
ADDS_FIRST = ['lstm', 'gru', 'post-activated', 'plain', 'plain to se']


@pytest.mark.parametrize(
    'name, variant', [(n, v) for n in PLAIN for v in ('v1', 'v4') if v == 'v1' or n not in ADDS_FIRST]
)
def test_grafted_network_computes_the_plain_one(name: str, variant: str) -> None:
    ours, theirs = PLAIN[name][1], PLAIN[name][0]
    source = plain_resnet(**theirs)
    arguments = dict(depth=50, base_channels=8, rla_channels=4, variant=variant, with_hidden=True)
    model = RLAResNet(**arguments | ours)
    randomise_norms(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if '.rla.' in k}
    state, report = graft(source.state_dict(), model)
    assert_complete(report, source.state_dict(), model)
    model.load_state_dict(state)
    assert_same(features(model, (65, 96)), features(source, (65, 96)))
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    # tensors that have no effect at first learn nevertheless
    model.train()
    sum((output * output).mean() for output in model(torch.randn(2, 3, 64, 64))).backward()
    learning = ['conv1_hidden', 'attention.conv', 'attention.fc2']
    learning += ['attention.spatial_norm' if 'norms' in name else 'attention.spatial']
    grads = dict(model.named_parameters())
    for key in (f'layer2.1.{part}.weight' for part in learning):
        assert key not in grads or grads[key].grad.abs().sum() > 0


def in_timm_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm's ResNet-D: the stem is ``conv1``, its last norm ``bn1``."""
    names = {'stem.7.': 'bn1.', **{f'stem.{i}.': f'conv1.{i}.' for i in (0, 1, 3, 4, 6)}}
    renamed = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = re.sub(f'^{re.escape(ours)}', theirs, key)
        renamed[key] = value
    return renamed


def test_timm_layout_of_resnet_d_and_attention() -> None:
    source = plain_resnet(scope='mmdet', deep_stem=True, avg_down=True)
    state = in_timm_layout(source.state_dict())
    model = RLAResNet(50, base_channels=8, deep_stem=True, avg_down=True)
    grafted, report = graft(state, model)
    assert_complete(report, state, model)
    model.load_state_dict(grafted)
    assert_same(features(model), features(source))
    # squeeze-and-excitation as 1x1 convolutions named se.fc1, se.fc2
    attended = RLAResNet(50, base_channels=8, attention='se')
    renamed = {
        key.replace('.attention.', '.se.'): value[..., None, None] if '.attention.' in key else value
        for key, value in attended.state_dict().items()
        if 'hidden' not in key and '.rla.' not in key
    }
    model = RLAResNet(50, base_channels=8, attention='se')
    grafted, report = graft(renamed, model)
    assert_complete(report, renamed, model)
    key = 'layer3.2.attention.fc1.weight'
    assert torch.equal(grafted[key], attended.state_dict()[key]) and key in report.transformed


@pytest.mark.parametrize('layout', ['ours', 'timm'])
def test_a_plain_cbam_network_is_taken_by_name(layout: str) -> None:
    cbam = dict(type='cbam', spatial_norm=True)
    source = RLAResNet(50, 0, base_channels=8, attention=cbam)
    randomise_norms(source)
    state = source.state_dict()
    if layout == 'timm':
        theirs = {'fc': 'channel.fc', 'spatial.': 'spatial.conv.conv.', 'spatial_norm.': 'spatial.conv.bn.'}
        for ours, name in theirs.items():
            state = {key.replace(f'.attention.{ours}', f'.se.{name}'): v for key, v in state.items()}
        state = {k: v[..., None, None] if 'channel.fc' in k else v for k, v in state.items()}
    model = RLAResNet(50, 4, base_channels=8, attention=cbam, cell='lstm')
    grafted, report = graft(state, model)
    assert_complete(report, state, model)
    model.load_state_dict(grafted)
    assert_same(features(model), features(source))


def test_a_network_whose_state_nothing_reads_becomes_a_plain_one() -> None:
    arguments = dict(depth=50, base_channels=8, rla_channels=4, with_hidden=True)
    source = RLAResNet(**arguments, exchange=False)
    randomise_norms(source)
    model = RLAResNet(50, 0, base_channels=8)
    state, report = graft(source.state_dict(), model)
    assert_complete(report, source.state_dict(), model)
    model.load_state_dict(state)
    assert_same(features(model), tuple(x[:, : c.size(1)] for x, c in zip(features(source), features(model))))
    # where blocks read it, the plain network would be another
    with pytest.raises(TransferError, match='unexpected in the source: layer1.0.conv1_hidden.weight'):
        graft(RLAResNet(**arguments).state_dict(), model)


def test_wide_resnets_have_torchvisions_shapes() -> None:
    models = pytest.importorskip('torchvision.models')
    with torch.device('meta'):
        source = models.wide_resnet50_2().state_dict()
        model = RLAResNet(50, base_width=128)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in source.items() if not key.startswith('fc.')} == {
        key: shape for key, shape in shapes.items() if 'hidden' not in key and '.rla.' not in key
    }
    assert find_backbone('rla-wide-resnet50-2')[1]['base_width'] == 128


def test_torchvision_weights_graft() -> None:
    models = pytest.importorskip('torchvision.models')
    source = models.resnet50(num_classes=5)
    randomise_norms(source)
    model = nn.Module()
    model.backbone = RLAResNet(50, out_indices=(3,), with_hidden=True)
    model.head = nn.Module()
    model.head.fc = nn.Linear(model.backbone.out_channels[-1], 5)
    state, report = graft(source.state_dict(), model)
    assert_complete(report, source.state_dict(), model)
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    model.eval()
    source.eval()
    with torch.no_grad():
        logits = model.head.fc(model.backbone(x)[-1].mean((2, 3)))
        expected = source(x)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    depth=st.sampled_from([50, 101]),
    base=st.sampled_from([4, 8]),
    rla_channels=st.integers(1, 6),
    attention=st.sampled_from([None, 'se', 'eca']),
    prefix=st.sampled_from(['', 'module.', 'backbone.', 'module.backbone.']),
    wrapped=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    stages=st.sampled_from([ALL, (1, 2), (0,)]),
    counters=st.booleans(),
)
def test_exact_and_complete_whatever_the_layout(
    depth, base, rla_channels, attention, prefix, wrapped, dtype, stages, counters
) -> None:
    source = plain_resnet(depth=depth, base=base).to(dtype)
    state = {
        prefix + key: value
        for key, value in source.state_dict().items()
        if counters or not key.endswith('num_batches_tracked')
    }
    model = RLAResNet(depth, rla_channels, attention=attention, base_channels=base, out_indices=stages).to(
        dtype
    )
    grafted, report = graft({'state_dict': state} if wrapped else state, model)
    bare = {key.removeprefix('module.'): value for key, value in state.items()}
    assert_complete(report, bare, model)
    model.load_state_dict(grafted)
    assert_same(features(model), tuple(features(source)[i] for i in stages))


class Detector(nn.Module):
    """A backbone with a neck and, after training, its own values in both."""

    def __init__(self, backbone: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(256, 8, 1)
        if head:
            self.roi_head = nn.Linear(8, 2)


def test_a_whole_detector_keeps_its_other_parts() -> None:
    source = Detector(plain_resnet())
    model = Detector(RLAResNet(50, base_channels=8), head=True)
    state, report = graft(source.state_dict(), model)
    assert torch.equal(state['neck.weight'], source.neck.weight)
    assert set(report.initial.values()) >= {'the source has no roi_head'}
    assert_complete(report, source.state_dict(), model)
    # the other way round a part is left over
    state, report = graft(Detector(plain_resnet(), head=True).state_dict(), Detector(model.backbone))
    assert report.unused['roi_head.weight'] == 'the model has no roi_head'


def test_weights_of_an_rla_network_are_taken_as_they_are() -> None:
    source = RLAResNet(50, base_channels=8, attention='eca')
    model = RLAResNet(50, base_channels=8, attention='eca')
    state, report = graft(source.state_dict(), model)
    assert not report.transformed and not report.initial
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())


def test_a_classifier_of_ours_starts_a_detector(tmp_path) -> None:
    classifier = nn.Module()
    classifier.backbone = RLAResNet(50, base_channels=8, with_hidden=True, out_indices=(3,))
    classifier.head = nn.Module()
    classifier.head.fc = nn.Linear(288, 5)
    randomise_norms(classifier)
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'classifier.pth')
    cfg = dict(type='mmrecur.Graft', checkpoint=str(tmp_path / 'classifier.pth'))
    model = RLAResNet(50, base_channels=8, init_cfg=cfg)
    model.init_weights()
    expected = features(classifier.backbone)[-1][:, :256]
    assert_same(features(model)[-1:], (expected,))


def test_misfits_are_named_and_nothing_is_changed() -> None:
    source = plain_resnet().state_dict()
    model = RLAResNet(50, base_channels=8)
    before = copy.deepcopy(model.state_dict())
    lacking = {key: value for key, value in source.items() if key != 'layer1.0.conv2.weight'}
    with pytest.raises(TransferError, match='missing in the source: layer1.0.conv2.weight'):
        graft(lacking, model)
    with pytest.raises(TransferError, match='unexpected in the source: layer1.0.extra'):
        graft({**source, 'layer1.0.extra': torch.zeros(1)}, model)
    with pytest.raises(TransferError, match=r'conv1.weight has shape \(16, 3, 7, 7\)'):
        graft(source, RLAResNet(50, base_channels=16))
    _, report = graft(lacking, model, strict=False)
    assert 'not explained' in report.initial['layer1.0.conv2.weight']
    with pytest.raises(ValueError, match='backbone of type Conv2d, allowed: .*RLAResNet'):
        graft(source, nn.Conv2d(1, 1, 1))
    with pytest.raises(TransferError, match='no tensors'):
        graft({'epoch': 3}, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_family_declares_its_rule_and_subclasses_use_it() -> None:
    class Mine(Backbone):
        pass

    class Sub(Mine):
        def __init__(self) -> None:
            super().__init__(num_stages=1, out_indices=(0,))
            self.conv1 = nn.Conv2d(1, 1, 1, bias=False)

    @register_graft(Mine)
    def rule(transfer) -> None:
        for name in transfer.backbone_keys():
            transfer.take(name)

    state, _ = graft({'conv1.weight': torch.full((1, 1, 1, 1), 3.0)}, Sub())
    assert state['conv1.weight'].item() == 3


def test_init_cfg_grafts_and_logs(tmp_path, capsys) -> None:
    source = plain_resnet()
    torch.save({'state_dict': Detector(source).state_dict()}, tmp_path / 'detector.pth')
    cfg = dict(type='mmrecur.Graft', checkpoint=str(tmp_path / 'detector.pth'), prefix='backbone.')
    model = MODELS.build(dict(type='mmrecur.RLAResNet', depth=50, base_channels=8, init_cfg=cfg))
    model.init_weights()
    assert_same(features(model), features(source))
    with pytest.raises(TransferError, match="detector.pth.*prefix='head.': no key"):
        model.init_cfg[-1]['prefix'] = 'head.'
        model._is_init = False
        model.init_weights()
