"""Global context and non-local blocks of MMCV in RLA-ResNets."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks import ContextBlock, NonLocal2d
from mmdet.models.backbones import ResNet
from torch import nn

from mmrecur.checkpoint import graft
from mmrecur.models.backbones import RLAResNet
from tests.helpers import randomise_norms

GC = dict(
    cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3'
)
NON_LOCAL = dict(
    cfg=dict(type='NonLocal2d'), stages=(False, False, True, False), position='before_last_block'
)
SMALL = dict(depth=50, base_channels=8)


def small(*plugins: dict, **kwargs) -> RLAResNet:
    return RLAResNet(**SMALL, plugins=list(plugins), **kwargs).eval()


def randomise(model: nn.Module) -> None:
    torch.manual_seed(0)
    randomise_norms(model)
    for module in model.modules():
        if isinstance(module, ContextBlock | NonLocal2d):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)


def test_global_context_equals_mmdets() -> None:
    theirs = ResNet(**SMALL, stem_channels=8, plugins=[GC], frozen_stages=-1)
    theirs.eval()
    randomise(theirs)
    ours = small(GC, rla_channels=0)
    assert sum(isinstance(m, ContextBlock) for m in ours.modules()) == 4 + 6 + 3
    # mmdet's names of a trained GCNet are known
    state, report = graft(theirs.state_dict(), ours)
    ours.load_state_dict(state)
    assert not report.initial and not report.unused
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for actual, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(actual, expected)


def test_non_local_block_reads_what_the_last_block_reads() -> None:
    ours = small(NON_LOCAL, rla_channels=0)
    randomise(ours)
    (layer,) = [m for m in ours.modules() if isinstance(m, NonLocal2d)]
    assert layer is ours.layer3.before_last and layer.in_channels == 4 * 8 * 4
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = ours.maxpool(ours.relu(ours.bn1(ours.conv1(x))))
        for block in (*ours.layer1.blocks, *ours.layer2.blocks, *ours.layer3.blocks[:5]):
            expected = block(expected)
        expected = ours.layer3.blocks[5](layer(expected))
        torch.testing.assert_close(ours(x)[2], expected)


@pytest.mark.parametrize('options', [{}, dict(rla_channels=4), dict(rla_channels=4, variant='v3')])
def test_new_plugins_change_nothing_at_first(options: dict) -> None:
    """After the initialisers of the whole network, and with a grafted checkpoint."""
    options = dict(rla_channels=0) | options
    plain = RLAResNet(**SMALL, **options).eval()
    randomise(plain)
    x = torch.randn(1, 3, 64, 64)
    for plugins in ([GC], [NON_LOCAL], [GC, NON_LOCAL]):
        model = small(*plugins, **options)
        model.init_weights()
        torch.manual_seed(0)
        state, report = graft(plain.state_dict(), model)
        model.load_state_dict(state)
        assert {key for key in report.initial if '.attention.' in key or '.before_last.' in key}
        names = state.keys() & plain.state_dict().keys()
        plain.load_state_dict({key: state[key] for key in names})
        with torch.no_grad():
            for actual, expected in zip(model(x), plain(x), strict=True):
                torch.testing.assert_close(actual, expected)


def test_initialisers_of_the_user_come_alone() -> None:
    """Plugins are initialised after the user's initialisers and before checkpoints."""
    model = small(GC, init_cfg=dict(type='Kaiming', layer='Conv2d'))
    assert [cfg['type'] for cfg in model.init_cfg] == ['Kaiming', 'mmrecur.PluginInit']
    model = small(GC, init_cfg=dict(type='mmrecur.Graft', checkpoint='torchvision://resnet50'))
    assert [cfg['type'] for cfg in model.init_cfg] == [
        'Kaiming',
        'Constant',
        'mmrecur.PluginInit',
        'mmrecur.Graft',
    ]
    assert RLAResNet(**SMALL).init_cfg == RLAResNet(**SMALL, plugins=[]).init_cfg


def test_parameters_are_those_of_the_layers() -> None:
    with torch.device('meta'):
        plain, context, non_local = (
            sum(p.numel() for p in RLAResNet(50, rla_channels=0, plugins=plugins).parameters())
            for plugins in ([], [GC], [NON_LOCAL])
        )

    def in_block(c: int) -> int:  # mask, two layers with a norm of both factors between them
        return (c + 1) + (c * c // 16 + c // 16) + 2 * c // 16 + (c // 16 * c + c)

    assert context - plain == 4 * in_block(512) + 6 * in_block(1024) + 3 * in_block(2048)
    assert non_local - plain == 3 * (1024 * 512 + 512) + 512 * 1024 + 1024


@pytest.mark.parametrize(
    'plugins, error, message',
    [
        (GC, TypeError, 'plugins={.*}, allowed: None or a list of dicts'),
        ([dict(position='after_conv3')], TypeError, 'plugins holds .*allowed: dict\\(cfg='),
        ([{**GC, 'stage': 3}], TypeError, 'plugins holds .*allowed'),
        ([{**GC, 'cfg': dict(ratio=1 / 16)}], TypeError, 'plugins has cfg=.*allowed'),
        ([{**GC, 'position': 'after_conv2'}], ValueError, "position of plugins='after_conv2', allowed"),
        ([{**GC, 'stages': (True,)}], ValueError, r'stages=\(True,\), allowed: None or a bool'),
        ([{**GC, 'stages': (1, 0, 0, 0)}], ValueError, 'allowed: None or a boolean for each stage'),
        ([{**GC, 'stages': 3}], ValueError, 'stages=3, allowed: None or a boolean for each stage'),
        ([GC, GC], ValueError, 'two after_conv3 in stage 2, allowed: one'),
        ([{**GC, 'cfg': dict(type='ContextBlok', ratio=1)}], ValueError, 'builds no plugin.*NonLocal2d'),
        ([{**GC, 'cfg': dict(type='ContextBlock')}], ValueError, 'builds no plugin.*ratio'),
    ],
)
def test_wrong_plugins_are_named(plugins: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RLAResNet(**SMALL, plugins=plugins)


def test_attention_and_a_plugin_cannot_share_a_place() -> None:
    with pytest.raises(ValueError, match="attention='se' with plugins of position='after_conv3'"):
        small(GC, attention='se')
    small(NON_LOCAL, attention='se')
