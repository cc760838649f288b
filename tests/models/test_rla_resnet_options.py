"""Options of RLAResNet: wrong ones are named, and each has the parameters of the authors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

import mmrecur.registry  # noqa: F401
from tests.models.zoo import BACKBONES

WRONG = [
    (dict(depth=34), 'depth=34, allowed: 50, 101, 152'),
    (dict(variant='v7'), "variant='v7', allowed: 'v1', 'v2', 'v3', 'v4', 'v5', 'v6'"),
    (dict(attention='ca'), "attention='ca', allowed: None, 'se', 'eca', 'cbam'"),
    (dict(attention=dict(type='cbam', kernel_size=4)), 'kernel_size=4, allowed: an odd integer'),
    (dict(attention=dict(type='cbam', bias=1)), r'attention=.*bias=1 .*True or False'),
    (dict(attention=dict(type='eca', kernel=5)), r'attention=\{.*\}, allowed: .*kernel'),
    (dict(attention=3), "attention=3, allowed: None, 'se', 'eca'"),
    (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\), allowed: .* integers from 0 to 3'),
    (dict(out_indices=(2, 1)), r'out_indices=\(2, 1\), allowed: .*increasing'),
    (dict(out_indices=()), r'out_indices=\(\), allowed: one or more'),
    (dict(out_indices=3), 'out_indices=3, allowed'),
    (dict(rla_channels=-1), 'rla_channels=-1, allowed: an integer of at least 0'),
    (dict(cell='rnn'), "cell='rnn', allowed: 'conv', 'lstm', 'gru'"),
    (dict(share=1), "share=1, allowed: 'stage', None"),
    (dict(exchange=None), 'exchange=None.*allowed: True or False'),
    (dict(post_act='yes'), "post_act='yes'.*allowed: True or False"),
    (dict(cell='lstm', post_act=True), "post_act=True with cell='lstm', allowed: False"),
    (dict(cell='gru', variant='v4'), "cell='gru' .*added last .*allowed: variants v1, v3, v5"),
    (dict(post_act=True, variant='v2'), 'post_act=True .*added last .*allowed: variants v1, v3, v5'),
    (dict(exchange=False), 'exchange=False with with_hidden=False, allowed: with_hidden=True'),
    (dict(rla_channels=0, cell='lstm'), "cell='lstm' with rla_channels=0, allowed: 'conv'"),
    (dict(rla_channels=0, variant='v3'), "variant='v3' with rla_channels=0, allowed: 'v1'"),
    (dict(rla_channels=0, share=None), "share=None with rla_channels=0, allowed: 'stage'"),
    (dict(rla_channels=0, with_hidden=True), 'with_hidden=True with rla_channels=0, allowed: False'),
    (dict(extra_channels=6), 'extra_channels=6, allowed: a multiple of 4'),
    (dict(extra_channels=8, groups=4, base_width=4), 'extra_channels=8, allowed: a multiple of 16'),
    (dict(rla_channels=True), 'rla_channels=True, allowed'),
    (dict(frozen_stages=5), 'frozen_stages=5, allowed: an integer from -1 to 4'),
    (dict(frozen_stages=-2), 'frozen_stages=-2, allowed'),
    (dict(in_channels=0), 'in_channels=0, allowed'),
    (dict(groups=0), 'groups=0, allowed'),
    (dict(base_width=1.5), 'base_width=1.5, allowed'),
    (dict(base_width=100, base_channels=8), 'base_width=100 with groups=1, allowed: a multiple of 8'),
    (dict(init_cfg=3), 'init_cfg=3, allowed'),
    (dict(base_channels='64'), "base_channels='64', allowed"),
    (dict(norm_cfg=dict(type='Norm')), r'norm_cfg=.*Norm.*Allowed'),
    (dict(norm_cfg='BN'), "norm_cfg='BN', allowed"),
    (dict(norm_cfg=dict(type='GN', num_groups=3)), 'norm_cfg=.*num_groups'),
    (dict(norm_eval='yes'), "norm_eval='yes'.*allowed: True or False"),
    (dict(with_cp=1), 'with_cp=1.*allowed: True or False'),
    (dict(with_hidden=None), 'with_hidden=None.*allowed: True or False'),
    (dict(strides=(1, 2, 2)), r'strides=\(1, 2, 2\), allowed: four integers'),
    (dict(init_cfg='torchvision://resnet50'), "init_cfg='torchvision://resnet50', allowed"),
]


@pytest.mark.parametrize('arguments, message', WRONG)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build({**BACKBONES['rla-r50'], **arguments})


COUNTS = {
    'rla_resnet50': dict(depth=50),
    'rla_resnet50_eca': dict(depth=50, attention='eca'),
    'rla_resnet101': dict(depth=101),
    'rla_resnet101_eca': dict(depth=101, attention='eca'),
    'rla_resnet152': dict(depth=152),
    'rla_resnet152_eca': dict(depth=152, attention='eca'),
    'rla_resnext50_32x4d': dict(depth=50, groups=32, base_width=4),
    'rla_resnext101_32x4d': dict(depth=101, groups=32, base_width=4),
    'rlav2_resnet50': dict(depth=50, variant='v2'),
    'rlav6_resnet50': dict(depth=50, variant='v6'),
    'rlaus_resnet50': dict(depth=50, share=None),
    'rlaus_resnet101': dict(depth=101, share=None),
    'rlarh_resnet50': dict(depth=50, exchange=False),
    'rlalstm_resnet50': dict(depth=50, cell='lstm'),
    'rlagru_resnet50': dict(depth=50, cell='gru'),
    'rlav1p_resnet50': dict(depth=50, post_act=True),
    'resnet50': dict(depth=50, rla_channels=0),
    'resnet152': dict(depth=152, rla_channels=0),
    'resnet50_se': dict(depth=50, rla_channels=0, attention='se'),
    'resnet50_eca': dict(depth=50, rla_channels=0, attention='eca'),
    'resnet50_k': dict(depth=50, rla_channels=0, extra_channels=32),
}


def parameters_of_a_classifier(**arguments) -> int:
    """With 1000 classes."""
    with_hidden = arguments.get('rla_channels') != 0
    with torch.device('meta'):
        model = MODELS.build(dict(type='mmrecur.RLAResNet', with_hidden=with_hidden, **arguments))
    return sum(p.numel() for p in model.parameters()) + 1000 * (model.out_channels[-1] + 1)


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_are_the_authors(name: str) -> None:
    counts = json.loads((Path(__file__).parents[1] / 'data' / 'parameters.json').read_text())
    ours = parameters_of_a_classifier(**COUNTS[name])
    assert ours == counts['rla (author implementation)'][name]


def test_parameters_of_cbam_are_the_papers() -> None:
    """Table 3 of the RLA paper, in 2^20; and of CBAM's released code, 28.09 M in its paper."""
    cbam = dict(attention='cbam', rla_channels=0)
    counts = [parameters_of_a_classifier(depth=depth, **cbam) / 2**20 for depth in (50, 101)]
    assert counts == pytest.approx([26.77, 47.01], abs=0.005)
    released = dict(type='cbam', bias=True, spatial_norm=True)
    count = parameters_of_a_classifier(depth=50, rla_channels=0, attention=released)
    assert count / 1e6 == pytest.approx(28.09, abs=0.005)
