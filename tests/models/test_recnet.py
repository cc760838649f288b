"""RecNet: the paper's networks, their parameters and their arguments."""

from __future__ import annotations

import math

import pytest
import torch

from mmrecur.checkpoint import graft
from mmrecur.errors import TransferError
from mmrecur.models.backbones import RecNet
from mmrecur.models.layers import ChannelRecurrentConv
from tests.helpers.recnet import by_hand, classifier_parameters, width_of

#: Table 3: channels of a segment and steps of each stage, printed parameters (thousands), and thousands of
#: printed parameters that neither Table 1 nor a hidden layer of 160 units explains.
TABLE_3 = {
    '60-640': ((4, 8, 16), (10, 10, 10), 471, 0),
    '90-960': ((4, 8, 16), (15, 15, 15), 863, 0),
    '120-1280': ((4, 8, 16), (20, 20, 20), 1406, 0),
    '60-1280': ((8, 16, 32), (10, 10, 10), 1769, 0),
    '90-1920': ((8, 16, 32), (15, 15, 15), 3306, 0),
    '120-2560': ((8, 16, 32), (20, 20, 20), 5444, 0),
    '60-480': ((8, 8, 8), (5, 10, 15), 316, 6.4),
    '90-640': ((8, 8, 8), (10, 15, 20), 537, 12.8),
    '120-960': ((8, 8, 8), (10, 20, 30), 930, 0),
    '60-960': ((16, 16, 16), (5, 10, 15), 1137, 0),
    '90-1280': ((16, 16, 16), (10, 15, 20), 2028, 51.2),
    '120-1920': ((16, 16, 16), (10, 20, 30), 3569, 0),
}


@pytest.mark.parametrize('name', TABLE_3)
def test_named_networks_match_table_3(name: str) -> None:
    segments, steps, printed, beyond = TABLE_3[name]
    expansion, *settings = RecNet.arch_settings[name]
    assert settings == [segments, steps, 'cifar'] and expansion == 4
    assert name == f'{2 * sum(steps)}-{width_of(segments, steps)}'
    count = classifier_parameters(arch=name)
    assert (
        count
        == by_hand(4, segments, steps)
        == classifier_parameters(expansion=4, segments=segments, steps=steps)
    )
    hidden = 160 * (segments[-1] * steps[-1] + 1) + 100 * 161
    linear = 100 * (segments[-1] * steps[-1] + 1)
    assert (count - linear + hidden) / 1000 + beyond == pytest.approx(printed, abs=1)


def test_parameter_counts_match_table_1() -> None:
    counts = [classifier_parameters(arch=name) for name in ('60-1280', '60-640', '120-2560', '60-480')]
    assert counts == [1_733_140, 444_860, 5_388_740, 285_740]
    # Section 2.1.1: a layer with 160 input and 640 output channels in ten segments
    assert sum(p.numel() for p in ChannelRecurrentConv(16, 64, 10).parameters()) == 47_360
    # Table 2 (c): 1,769 K less 1,425 K and 1,683 K
    assert counts[0] - classifier_parameters(kernel_size_h=1) == 344_064
    assert counts[0] - classifier_parameters(kernel_size_x=1) == 86_016
    assert classifier_parameters(recurrent=False) == counts[0]  # Table 2 (d)


def test_stages_stop_at_the_last_output() -> None:
    model = RecNet(segments=(2, 3, 4), steps=(2, 2, 3), expansion=2, out_indices=(0, 1))
    assert model.out_channels == (6, 12) and model.out_strides == (1, 2)
    assert not hasattr(model, 'layer3')


def test_extension_has_the_strides_of_a_detection_backbone() -> None:
    with torch.device('meta'):
        models = {arch: RecNet(arch=arch) for arch in ('small', 'medium', 'large')}
    assert all(model.out_strides == (4, 8, 16, 32) for model in models.values())
    assert models['small'].out_channels == (96, 192, 384, 384)
    sizes = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 3


def test_linear_states_keep_their_scale_at_the_start() -> None:
    torch.manual_seed(0)
    model = RecNet(segments=(4,), steps=(16,), expansion=4, activation='linear')
    model.init_weights()
    crc = model.layer1[0].crc
    h, scales = torch.randn(1, 16, 32, 32), []
    for _ in range(16):
        h = crc.conv_h(h)
        scales.append(h.std().item())
    assert 0.1 < scales[-1] < 3 and math.isfinite(scales[-1])


WRONG = [
    (dict(arch='60-1281'), "arch='60-1281', allowed: '60-640'"),
    (dict(expansion=0), 'expansion=0, allowed: an integer of at least 1'),
    (dict(segments=(4, 8)), r'steps=\(10, 10, 10\) with segments=\(4, 8\), allowed'),
    (dict(segments=8), 'segments=8, allowed: a positive integer for each stage'),
    (dict(steps=(4, 0, 2)), r'steps=\(4, 0, 2\), allowed: a positive integer for each stage'),
    (dict(stem='resnet'), "stem='resnet', allowed: 'cifar', 'imagenet'"),
    (dict(activation='tanh'), "activation='tanh', allowed: 'relu', 'shared_bn', 'separate_bn', 'linear'"),
    (dict(kernel_size_x=5), 'kernel_size_x=5, allowed: 1, 3'),
    (dict(kernel_size_h=2), 'kernel_size_h=2, allowed: 1, 3'),
    (dict(recurrent=1), 'recurrent=1.*allowed: True or False'),
    (dict(out_indices=(0, 3)), r'out_indices=\(0, 3\), allowed: .* from 0 to 2'),
    (dict(frozen_stages=4), 'frozen_stages=4, allowed: an integer from -1 to 3'),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RecNet(**arguments)


def test_grafting_a_plain_network_is_rejected_with_the_reason() -> None:
    plain = {'conv1.weight': torch.zeros(64, 3, 7, 7)}
    with pytest.raises(TransferError, match='no weights of a plain network: .*Pretrained'):
        graft(plain, RecNet(expansion=1, segments=(2,), steps=(2,)))
