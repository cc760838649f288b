"""RLA-ResNets for small images: against the paper's equations and counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrecur.checkpoint import graft
from mmrecur.models.backbones import RLAPreActResNet
from tests.helpers import randomise_norms


def norm_relu(x: Tensor, *norms: nn.BatchNorm2d) -> Tensor:
    """Batch norm over concatenated channels, whose parameters the network keeps in parts, and ReLU."""
    mean, var, weight, bias = (
        torch.cat([getattr(norm, name) for norm in norms])
        for name in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return F.relu(F.batch_norm(x, mean, var, weight, bias))


def reference(model: RLAPreActResNet, x: Tensor) -> Tensor:
    """Section 3.3 with v1, Tables 7 and 8, with ``cat`` as written there."""
    x = norm_relu(model.conv1(x), model.bn1)
    h = torch.zeros(len(x), model.rla_channels, *x.shape[2:])
    for stage in (model.layer1, model.layer2, model.layer3):
        for step, block in enumerate(stage.blocks):
            first = torch.cat([block.conv1.weight, block.conv1_hidden.weight], dim=1)
            y = norm_relu(torch.cat([x, h], dim=1), block.bn1, block.bn1_hidden)
            y = F.conv2d(y, first, stride=block.conv1.stride, padding=block.conv1.padding)
            y = block.conv2(norm_relu(y, block.bn2))
            if model.block == 'bottleneck':
                y = block.conv3(norm_relu(y, block.bn3))
            x = y + (block.downsample(x) if block.downsample else x)
            h = F.avg_pool2d(h, 2) if block.stride == 2 else h
            h = stage.rla.recurrent_conv(torch.tanh(stage.rla.norms[step](h + stage.rla.conv_out(y))))
    return torch.cat([norm_relu(x, model.final_norm), norm_relu(h, model.hidden_norm)], dim=1)


@pytest.mark.parametrize('depth, block', [(14, 'basic'), (20, 'bottleneck')])
def test_computes_the_equations(depth: int, block: str) -> None:
    torch.manual_seed(0)
    model = RLAPreActResNet(depth, block, rla_channels=3, base_channels=4, with_hidden=True).eval()
    randomise_norms(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], reference(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'depth, rla_channels, classes, count',
    [
        (164, 8, 10, 1_726_554),
        (164, 12, 10, 1_739_482),
        (164, 16, 10, 1_753_274),
        (164, 24, 10, 1_783_450),
        (164, 12, 100, 1_763_692),
        (164, 0, 10, 1_703_290),
        (110, 4, 10, 1_804_922),
        (110, 4, 100, 1_811_132),
        (110, 0, 10, 1_730_554),
    ],
)
def test_parameters_are_the_papers(depth: int, rla_channels: int, classes: int, count: int) -> None:
    with torch.device('meta'):
        model = RLAPreActResNet(depth, rla_channels=rla_channels, with_hidden=rla_channels > 0)
    classifier = classes * (model.out_channels[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == count


@pytest.mark.parametrize(
    'arguments, millions',
    [
        (dict(rla_channels=0, extra_channels=12), 1.93),
        (dict(share=None), 1.90),
        (dict(cell='lstm'), 1.77),
        (dict(post_act=True), 1.74),
        (dict(variant='v2'), 1.74),
    ],
)
def test_ablations_have_the_counts_of_table_11(arguments: dict, millions: float) -> None:
    with torch.device('meta'):
        model = RLAPreActResNet(164, with_hidden=arguments.get('rla_channels') != 0, **arguments)
    count = sum(p.numel() for p in model.parameters()) + 10 * (model.out_channels[-1] + 1)
    assert count / 1e6 == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize(
    'depth, block, chosen',
    [(20, None, 'basic'), (29, None, 'bottleneck'), (110, None, 'basic'), (164, None, 'bottleneck'),
     (56, 'bottleneck', 'bottleneck'), (164, 'basic', 'basic')],
)  # fmt: skip
def test_blocks_follow_the_depth(depth: int, block: str | None, chosen: str) -> None:
    with torch.device('meta'):
        model = RLAPreActResNet(depth, block, base_channels=2)
    convs = {'basic': 2, 'bottleneck': 3}[chosen]
    blocks = [b for stage in model.stages for b in getattr(model, stage).blocks]
    assert model.block == chosen and len(blocks) * convs + 2 == depth


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(depth=21), r'depth=21 with block=None, allowed: 6 n \+ 2 or 9 n \+ 2'),
        (dict(depth=26, block='bottleneck'), r"depth=26 with block='bottleneck', allowed: 9 n \+ 2"),
        (dict(depth=2), 'depth=2 .*n of at least 1'),
        (dict(depth='20'), "depth='20'"),
        (dict(depth=20, block='bottle'), "block='bottle', allowed: 'basic', 'bottleneck'"),
        (dict(depth=20, rla_channels=-1), 'rla_channels=-1, allowed'),
        (dict(depth=20, rla_channels=0, with_hidden=True), 'with_hidden=True with rla_channels=0'),
        (dict(depth=20, variant='v0'), "variant='v0', allowed"),
        (dict(depth=20, extra_channels=-3), 'extra_channels=-3, allowed'),
        (dict(depth=164, extra_channels=3), 'extra_channels=3, allowed: a multiple of 4'),
        (dict(depth=20, exchange=False), 'exchange=False with with_hidden=False, allowed'),
        (dict(depth=20, out_indices=(3,)), r'out_indices=\(3,\), allowed: .* from 0 to 2'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build(dict(type='mmrecur.RLAPreActResNet', **arguments))


@pytest.mark.parametrize('depth, block', [(14, 'basic'), (20, 'bottleneck')])
@pytest.mark.parametrize('with_hidden', [False, True])
def test_grafted_from_the_plain_network(depth: int, block: str, with_hidden: bool) -> None:
    torch.manual_seed(0)
    plain = RLAPreActResNet(depth, block, rla_channels=0, base_channels=4).eval()
    randomise_norms(plain)
    model = RLAPreActResNet(depth, block, rla_channels=3, base_channels=4, with_hidden=with_hidden)
    state, report = graft(plain.state_dict(), model)
    model.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain(x)[0]
        actual = model.eval()(x)[0]
    assert torch.equal(actual[:, : expected.size(1)], expected)
    assert not report.unused and set(report.copied) == set(plain.state_dict())
